"""Policy and likelihood losses for language models with one coefficient per token.

Four operations share one vocabulary of arguments: `group_advantages`, `token_logprobs`, `policy_loss` (logits in) and
`linear_policy_loss` (hidden states and head weight in, logits never held). `LossSpec` says what the loss is, `preset`
names common ones. `sample_tokens` draws the tokens that they train. Nothing here needs Triton, a GPU or the rest of
this repository.
"""

from dyme_kernels import linear, policy
from dyme_kernels.advantages import GroupAdvantages, group_advantages
from dyme_kernels.extras.compile_ops import compiled_linear_policy_loss, compiled_policy_loss, in_graphs
from dyme_kernels.extras.vocab_parallel import Shard, vocab_parallel_linear_policy_loss, vocabulary_shard
from dyme_kernels.logprobs import TokenLogprobs, token_logprobs
from dyme_kernels.noise import gumbel_noise
from dyme_kernels.sampling import sample_tokens
from dyme_kernels.spec import NORMALIZATIONS, PRESETS, SURROGATES, TOKEN_SHAPINGS, LossSpec, preset
from dyme_kernels.tokens import PolicyLossOutput

policy_loss = in_graphs(policy.policy_loss, compiled_policy_loss)
linear_policy_loss = in_graphs(linear.linear_policy_loss, compiled_linear_policy_loss)

__all__ = [
    "NORMALIZATIONS",
    "PRESETS",
    "SURROGATES",
    "TOKEN_SHAPINGS",
    "GroupAdvantages",
    "LossSpec",
    "PolicyLossOutput",
    "Shard",
    "TokenLogprobs",
    "group_advantages",
    "gumbel_noise",
    "linear_policy_loss",
    "policy_loss",
    "preset",
    "sample_tokens",
    "token_logprobs",
    "vocab_parallel_linear_policy_loss",
    "vocabulary_shard",
]
