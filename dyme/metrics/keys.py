"""Keys: every number of metrics.jsonl, with its meaning, its reduction and its unit. docs/report.md is written from
here by docs/make_metrics.py."""

from __future__ import annotations

import re
from dataclasses import dataclass

MODES = ("explore", "memorize", "skip", "joint")
"""Names of `dyme.selectors.base.Mode`, in the order in which they are shown."""


@dataclass(frozen=True)
class Key:
    """One key, or several that differ by a word: `{a,b}` is either word, `<name>` a name from the data or settings.

    `reduction`: how the one number comes about. Where ranks have different numbers it names them; else it is the same
    on every rank.
    """

    pattern: str
    meaning: str
    reduction: str
    unit: str = ""

    def matches(self, key: str) -> bool:
        escaped = re.escape(self.pattern)
        words = re.sub(r"\\{(.*?)\\}", lambda found: f"(?:{found[1].replace(',', '|')})", escaped)
        return re.fullmatch(re.sub(r"<\w+>", ".+", words), key) is not None


ROLLOUTS, GROUPS, SCORED = "mean over rollouts", "mean over groups", "mean over scored rollouts"
WITHIN, BETWEEN = "mean over groups of the deviation inside", "deviation of the group means"
EXPLORED, SUM, HELD_OUT = "mean over explored tokens", "sum over ranks", "mean over held-out records"
STEP, RANK_0 = "of the step", "of rank 0"
PARTS = "{total,format,thinking,accuracy,length,user/<name>}"
MODE = f"{{{','.join(MODES)}}}"

KEYS = (
    Key("step", "optimizer steps so far, from 1; 0 for the evaluation before training", STEP, "steps"),
    Key("eval", "true on the lines of evaluations, absent elsewhere", "none"),
    Key("epoch", "passes over the training records", STEP, "passes"),
    Key("time_s", "wall time since the start of training, over all starts", RANK_0, "s"),
    Key("lr", "learning rate", STEP),
    Key("loss", "weighted loss", "sum over live tokens, mean over the step's epochs", "nats"),
    Key("grad_norm", "gradient norm before clipping", "mean over the step's epochs"),
    Key(f"mode/{MODE}_ratio", "groups in each mode, records that `buffered` adds included", GROUPS, "share"),
    Key(f"mode/<kind>/{MODE}_ratio", "the same of one kind of question", GROUPS, "share"),
    Key("collapse/{all_wrong,all_right}", "groups with n = 0; with all rollouts right", GROUPS, "share"),
    Key("collapse/{zero_std_reward,zero_std_accuracy}", "groups in which R, or s, does not vary", GROUPS, "share"),
    Key("collapse/shaped_only", "groups in which R varies though n = 0", GROUPS, "share"),
    Key(
        f"reward/{PARTS}_mean",
        "R, and each of its parts before its weight; length with `reward.length`, user rewards where they apply",
        SCORED,
    ),
    Key(f"reward/{PARTS}_std_within", "how much it differs inside a group, from which advantages come", WITHIN),
    Key(f"reward/{PARTS}_std_between", "how much prompts differ in difficulty", BETWEEN),
    Key("reward/user/<name>_weight", "weight of a user reward in this step", STEP),
    Key("reward/user/<name>_unscored", "rollouts for which it failed", ROLLOUTS, "share"),
    Key("accuracy", "s of the rollouts", SCORED, "share"),
    Key("accuracy/<kind>", "the same of one kind of question", SCORED, "share"),
    Key("format_rate", "rollouts with a valid format", ROLLOUTS, "share"),
    Key("rollout/length_mean", "length of a completion", ROLLOUTS, "tokens"),
    Key("rollout/tokens", "length of all completions", "sum over rollouts", "tokens"),
    Key(
        "rollout/entropy",
        "-logp of the sampled tokens: an estimate of the policy's entropy (not with engine hf)",
        "mean over tokens",
        "nats",
    ),
    Key("rollout/truncated", "rollouts cut at `rollout.max_new_tokens`", ROLLOUTS, "share"),
    Key("rollout/truncated/<kind>", "the same of one kind of question", ROLLOUTS, "share"),
    Key("rollout/eos", "rollouts that ended by themselves", ROLLOUTS, "share"),
    Key(
        "rollout/unscored", "rollouts without a reward: verifier or user reward failed, or no prompt", ROLLOUTS, "share"
    ),
    Key("effective_rows", "completions and demonstrations that train", "sum over ranks", "completions"),
    Key("effective_tokens", "their tokens", "sum over ranks, mean over the step's epochs", "tokens"),
    Key("lost_rows", "those of them whose picture failed where they train", SUM, "completions"),
    Key("bad_rows", "records that could not be encoded so far", RANK_0, "records"),
    Key("skipped_update", "1 where the update was dropped for a non-finite loss or gradient", STEP),
    Key("memorize/nll", "negative log-likelihood of the demonstrations", "mean over memorized tokens", "nats"),
    Key("memorize/ref_len", "length of a demonstration", "mean over memorized groups", "tokens"),
    Key(
        "memorize/repeat_count", "how often the memorized records had been memorized before", "mean over those", "times"
    ),
    Key("memorize/flip_rate", "records memorized at their last visit that now have n > 0", "mean over those", "share"),
    Key("policy/ratio_mean", "importance ratio", EXPLORED),
    Key("policy/clipped_{low,high}", "explored tokens clipped at either end", EXPLORED, "share"),
    Key("policy/entropy", "entropy of the policy", EXPLORED, "nats"),
    Key(
        "policy/kl", "k3 estimate of the divergence from the reference policy (`objective.beta` > 0)", EXPLORED, "nats"
    ),
    Key(
        "optim/{vision,language}_factor",
        "with `optim.modulation`: factor on the learning rate of the part",
        "of the step's last epoch",
    ),
    Key(
        "grad/{explore,memorize}_norm",
        "gradient norms of the two components (`train.component_norms_every`)",
        "over all parameters",
    ),
    Key("grad/cosine", "cosine between the gradients of the two components", "over all parameters"),
    Key(
        "supervision/facts/degraded",
        "groups without facts from the judge; facts by rules are used instead",
        SUM,
        "groups",
    ),
    Key(
        "supervision/check/{judge,both,degraded,skipped}",
        "completions by the scorer of their thinking; degraded: by words, because the judge gave no answer "
        "([supervision.md](supervision.md))",
        SUM,
        "completions",
    ),
    Key(
        "supervision/refine/{hint,rules,judge,degraded}",
        "demonstrations by their origin; degraded: the hint, because there was no usable rewrite",
        SUM,
        "groups",
    ),
    Key(
        "supervision/judge/{asked,sent,cached,deduplicated,retries,failed}",
        "questions of the step, requests, answers from the cache, ... ([judge.md](judge.md))",
        SUM,
        "calls",
    ),
    Key("supervision/judge/{tokens_in,tokens_out}", "tokens sent to the judge, and received", SUM, "tokens"),
    Key("supervision/judge/money", "what its answers cost, by the prices of `judge`", SUM, "their currency"),
    Key("supervision/templates", "version of the template pool", "last"),
    Key("time/{rollout,score,gather,refine,plan,update,refresh}", "time of the step in each phase", RANK_0, "s"),
    Key("time/judge", "time that a rank waited for the judge; part of score and refine", "mean over ranks", "s"),
    Key(
        "time/{forward,backward,optimizer}",
        "time inside the update, `run.profile` only ([speed.md](speed.md))",
        RANK_0,
        "s",
    ),
    Key("time_share/<phase>", "the same, of the sum of the phases", RANK_0, "share"),
    Key("tokens_per_s", "tokens sampled and trained, by the time of the phases", SUM, "tokens/s"),
    Key("eval/accuracy", "right answers in a valid format", HELD_OUT, "share"),
    Key("eval/format_rate", "answers with a valid format", HELD_OUT, "share"),
    Key("eval/thinking_mean", "thinking reward", HELD_OUT),
    Key("eval/length_mean", "length of an answer", HELD_OUT, "tokens"),
    Key("eval/n", "records evaluated", SUM, "records"),
)
