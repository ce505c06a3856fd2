"""The paper's final validation perplexities, to be shown beside a study's own figures.

"Training Language Models via Neural Cellular Automata", arXiv 2603.10055. Its model is a Llama of 24 layers with hidden
size 2,048; each stage 1 has 164M tokens. Nothing here was measured by this package.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

SOURCE: Final = "Training Language Models via Neural Cellular Automata, arXiv 2603.10055"
#: The models and budgets behind the figures.
SETTING: Final = (
    "Llama of 24 layers, hidden size 2,048, trained on 4 to 13 billion tokens of text; each stage 1 has 164M tokens"
)


@dataclass(frozen=True, slots=True)
class PaperFigures:
    """Final validation perplexities on a corpus.

    Attributes:
        title: name of the corpus.
        scratch: perplexity without a stage 1.
        c4, dyck, nca: perplexity after a stage 1 of this kind.
        gain_percent: gain of `nca` over `scratch`, as printed.
        speed_up: tokens at the end of `scratch` / tokens at which `nca` first reaches its final perplexity.
        bytes_per_token: bytes of text in a token of the paper's tokenizer, that of GPT-2; None if it is not known. This
            is our figure, for English text and for code.
    """

    title: str
    scratch: float
    c4: float
    dyck: float
    nca: float
    gain_percent: float
    speed_up: float
    bytes_per_token: float | None = None

    def gain_for(self, bytes_per_token: float) -> float:
        """Return the gain in perplexity per token of another tokenizer that has the same effect on each byte."""
        assert self.bytes_per_token is not None
        return 100 * (1 - (1 - self.gain_percent / 100) ** (bytes_per_token / self.bytes_per_token))


#: The figures by corpus, under the name that `domains.<name>.paper` of a study file gives.
FIGURES: Final[Mapping[str, PaperFigures]] = {
    "openwebtext": PaperFigures("OpenWebText", 14.66, 14.69, 14.36, 13.82, 5.7, 1.49, 4.5),
    "openwebmath": PaperFigures("OpenWebMath", 8.11, 8.14, 7.91, 7.70, 5.1, 1.41),
    "codeparrot": PaperFigures("CodeParrot", 1.92, 1.88, 1.85, 1.84, 4.2, 1.62, 2.5),
}


def published_gains(bytes_per_token: float) -> tuple[float, float]:
    """Return the smallest and the largest gain of the paper, converted to tokens of so many bytes, in per cent."""
    gains = [found.gain_for(bytes_per_token) for found in FIGURES.values() if found.bytes_per_token is not None]
    return min(gains), max(gains)
