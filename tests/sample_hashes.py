"""Samples and their hashes. Run as a script, it prints the hashes of this process, one a line."""

import hashlib
import sys

from nca_plugin.sources import parse

#: (URI, split, index, sequence length, first 16 digits of the SHA-256 of tokens and loss mask)
SAMPLES: tuple[tuple[str, str, int, int, str], ...] = (
    ("nca://web", "train", 0, 1024, "9122f80855803ba1"),
    ("nca://web", "train", 1, 1024, "0fdf195a54c7486b"),
    ("nca://web", "valid", 0, 1024, "d52e3ff065fde205"),
    ("nca://web", "test", 7, 2048, "45df524f6975063a"),
    ("nca://web?seed=7", "train", 4294967301, 1024, "0f914cc35b409a6b"),
    ("nca://web?seed=9223372036854775807", "train", 9223372036854775807, 300, "ae9663f36d5e5a8a"),
    ("nca://code", "train", 0, 1024, "e922baa49f5e2bee"),
    ("nca://code?seed=42", "train", 123456789012345, 512, "43368d11e04c1b7b"),
    ("nca://release", "train", 16003, 1024, "6432b110d8510d45"),
    ("nca://release?band=0.3:0.4", "train", 3, 1024, "923afcb4587936a9"),
    ("nca://paper", "train", 2, 1024, "209f1d45ab92c81d"),
    ("nca://toy", "train", 5, 256, "31f3167b28a44768"),
    ("nca://toy", "valid", 1099511627776, 4096, "dccc4df47e71defe"),
    ("nca://web?num_colors=2&band=none&grid_size=8&patch_size=4", "train", 1, 256, "761fcbeb5a1bc2af"),
    ("nca://web?num_colors=3&band=none&grid_size=15&patch_size=3", "train", 2, 400, "979ffc74b1c65c9b"),
    ("nca://web?num_colors=15&grid_size=10&temperature=0.01&identity_bias=0.05", "train", 4, 1024, "2d78776f51c81815"),
    ("nca://web?num_colors=33&patch_size=1&band=none&temperature=0", "train", 4, 600, "4cbc4f39a23969e0"),
    ("nca://web?burn_in=0&steps_per_frame=4", "train", 9, 1024, "49cc35cd378ba6f9"),
    ("nca://code?sequences_per_rule=4&scored_rollout=separate", "train", 7, 1024, "a119611ff3ad874e"),
    ("nca://web?curriculum=0@0.1:0.3,10@0.3:0.5,20@0.5:1", "train", 12, 1024, "0f9c93c116824132"),
    ("nca://web:0.7,code:0.3?seed=3", "train", 8589934592, 1024, "eb81ab2e30c50e77"),
    ("shuffled://toy?seed=3", "train", 11, 256, "2ccf0b4f76990a03"),
    ("dyck://?k=8", "train", 3, 256, "7d5eca0f7f946a73"),
    ("shuffle_dyck", "train", 35184372088832, 1024, "23cd131b1caa3bc2"),
    ("copy", "valid", 6, 1024, "004518c4933146ed"),
    ("iid://?exponent=1", "train", 8, 512, "449f1b167aa22643"),
    ("eca://?wolfram_class=4", "train", 8589934593, 1024, "1d2b575bbca49778"),
    ("eca://?rule=30&width=60&patch=5&burn_in=7", "test", 0, 512, "0f08979dd39d3c66"),
    ("linear_rnn", "train", 8589934594, 1024, "2c0a94849a84ef47"),
    ("linear_rnn://?vocab_size=300&hidden_size=17&temperature=0.1&num_systems=3", "test", 5, 512, "269791d145085417"),
)


def sample_hash(uri: str, split: str, index: int, seq_length: int) -> str:
    sample = parse(uri).for_split(split).sample(index, seq_length)
    content = sample.tokens.astype("<i4").tobytes() + sample.loss_mask.tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


if __name__ == "__main__":
    sys.stdout.writelines(f"{sample_hash(*sample)}\n" for *sample, _ in SAMPLES)
