"""A training script on Megatron-LM's own loop: the provider is what puts NCA data into it.

torchrun --nproc-per-node 8 pretrain.py <Megatron-LM arguments> --data-path nca://web \
    --tokenizer-type NullTokenizer --vocab-size 10002
"""

from megatron.core.enums import ModelType
from megatron.training import pretrain
from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
from megatron.training.arguments import parse_and_validate_args

from nca_plugin.megatron import provider
from nca_plugin.megatron.step import forward_step

if __name__ == "__main__":
    args = parse_and_validate_args()
    config = pretrain_cfg_container_from_args(args, gpt_config_from_args(args))
    pretrain(config, provider, ModelType.encoder_or_decoder, forward_step)
