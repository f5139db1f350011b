"""Every setting of a PPO run: small dataclasses with defaults, and the combinations that make no sense."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ppo_client.ppo.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """The language model that is trained, and the one it must stay close to."""

    model: str = ""
    """Directory of a Hugging Face checkpoint: decoder-only (GPT-2, Llama, …), encoder-decoder (T5, BART, …), or a LoRA
    adapter, which is merged. Required."""
    tokenizer: str = ""
    """Directory of the tokenizer; empty: the model's. Not needed where prompts and rewards are token ids."""
    reference: str = ""
    """Directory of the reference model of the KL penalty; empty: `model`, as it was before training."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights. Only float32 can be trained; computing in bfloat16 is `train.mixed_precision`. With LoRA, what
    is trained is float32 in any case, and the rest may be bfloat16."""
    gradient_checkpointing: bool = False
    """Recomputes activations in the backward pass: less memory, about a third more time."""


@dataclass(frozen=True, slots=True)
class LoRAConfig:
    """Low-rank adapters in place of full fine-tuning, by peft. There is no dropout: it would falsify the ratio.

    The reference is the policy with its adapter off, not a second model, unless `policy.reference` names one. A
    separate critic has an adapter of its own, on the policy's weights where it starts from them.
    """

    rank: int = 0
    """0: all weights are trained."""
    alpha: int = 16
    """The adapter's output is scaled by alpha / rank."""
    target_modules: tuple[str, ...] = ()
    """Names of the layers that get an adapter, or one that is "all-linear". Empty: peft's choice for the family, for
    most the attention's queries and values."""
    merge: bool = False
    """Writes, when the run has ended, OUTPUT/policy-merged beside OUTPUT/policy: a plain model, adapter included."""


@dataclass(frozen=True, slots=True)
class CriticConfig:
    """The value function."""

    kind: Literal["shared", "separate"] = "shared"
    """`shared`: a linear head on the policy's last hidden states; `separate`: a trunk of its own."""
    model: str = ""
    """Where a separate critic's trunk starts; empty: the policy's model."""
    init: str = ""
    """Directory of a reward model (sequence classification, one label, the policy's tokenizer) that a separate critic
    starts from, score head included. Empty: the value head starts at zero."""


@dataclass(frozen=True, slots=True)
class DataConfig:
    """The prompts."""

    prompts: str = ""
    """JSON Lines file, `.gz` too, one prompt a row: text, chat messages or token ids. Required."""
    field: str = "prompt"
    """Name of the field that holds the prompt."""
    where: str = ""
    """`name=value`: only rows whose field `name` has this value. Empty: all rows."""
    max_prompt_tokens: int = 512
    """Longer prompts are handled as `overlong` says."""
    overlong: Literal["refuse", "drop", "keep_end"] = "refuse"
    """`refuse`: an error before training; `drop`: leave them out; `keep_end`: the policy sees their last tokens."""


@dataclass(frozen=True, slots=True)
class RolloutConfig:
    """How the policy writes. There is no top-k and no top-p: they would falsify the log-probabilities."""

    max_response_tokens: int = 64
    """The response is cut here; it then ends without EOS."""
    min_response_tokens: int = 1
    """EOS cannot be drawn before this many tokens; its logit is masked in sampling and evaluation alike.
    Equal to `max_response_tokens`: all responses have this length."""
    temperature: float = 1.0
    """Divides the logits, in sampling and evaluation alike."""
    micro_batch_size: int = 64
    """Rows that are generated, sent to be scored and evaluated together, per process."""
    log_probs: Literal["auto", "sampling", "forward"] = "auto"
    """Where the behaviour policy's log-probabilities come from: noted while sampling, or a forward pass of their
    own. `auto`: sampling in full fp32 without LoRA, else forward, for the two differ by rounding."""


@dataclass(frozen=True, slots=True)
class RewardConfig:
    """Where scores come from, and how a score becomes a reward."""

    targets: tuple[str, ...] = ()
    """Addresses of the reward service, `host:port`; empty: the environment variable RM_TARGET."""
    model: str = ""
    """Selector: `name`, `name@3` or `name@label`. Required."""
    input: Literal["text", "token_ids"] = "text"
    """What is sent: decoded text without special tokens, or the ids as they were sampled (EOS included)."""
    prompt_template: str = "{prompt}"
    """The reward model's view of a text prompt; `{prompt}` stands for it."""
    calibrated: bool = False
    """Asks for scores on the model's common scale, so that another version's are comparable; every version needs a
    calibration. False: raw scores."""
    on_version_change: Literal["auto", "stop", "follow"] = "auto"
    """When another version answers. `auto`: follow for `name@label`, stop for the others."""
    timeout_s: float = 60.0
    """Deadline of one scoring call, retries included."""
    patience_s: float = 600.0
    """How long to wait for a service that is away before checkpointing and leaving."""
    empty_score: float | None = None
    """Takes the place of the score of a response without text (EOS first, or special tokens alone), which the service
    is not asked for. Absent: such a response ends the run."""
    normalize_samples: int = 0
    """Scores of this many responses of the starting policy fix a gain and a bias, so that they have mean 0 and
    standard deviation 1. 0: scores as they are."""
    clip: float | None = None
    """Scores (normalised ones, if so) are clipped to ±clip. Absent: not clipped."""
    missing_eos_penalty: float | None = None
    """Subtracted from the score of a response that was cut before EOS."""
    missing_eos_score: float | None = None
    """Takes the place of the score of a response that was cut before EOS (Ziegler et al. used −1)."""


@dataclass(frozen=True, slots=True)
class KLConfig:
    """The penalty that keeps the policy near the reference."""

    estimator: Literal["k1", "k2", "k3"] = "k1"
    """Per-token estimator that is subtracted from the reward."""
    coefficient: float = 0.05
    """β, at the start where it is adapted."""
    controller: Literal["fixed", "adaptive"] = "fixed"
    target: float = 6.0
    """Nats per episode (sum over the tokens) that the adaptive controller aims at."""
    horizon: float = 10_000.0
    """Episodes over which the adaptive controller may double β, roughly; larger is slower."""


@dataclass(frozen=True, slots=True)
class UpdateConfig:
    """The PPO update. Sizes count episodes over all processes, micro-batches per process."""

    batch_size: int = 64
    """Episodes per step."""
    num_epochs: int = 4
    """Passes over the batch."""
    num_minibatches: int = 4
    """Optimizer steps per pass."""
    micro_batch_size: int | None = None
    """Rows per forward pass in an update; changes memory and nothing else. Absent: the whole minibatch."""
    learning_rate: float = 1e-5
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Of the learning rate, over all optimizer steps, to zero."""
    warmup_steps: int = 0
    """PPO steps over which the learning rate rises from zero."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    clip_range: float = 0.2
    """ε of the policy's ratio."""
    value_clip_range: float = 0.2
    value_coefficient: float = 0.1
    entropy_coefficient: float = 0.0
    gamma: float = 1.0
    gae_lambda: float = 0.95
    whiten_rewards: bool = False
    """Scales token rewards to variance 1 over the batch; the mean stays."""
    whiten_advantages: bool = True
    stop_kl: float | None = None
    """Ends a step's update before a minibatch whose approximate KL from the sampling policy is larger."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """The run."""

    output: str = ""
    """Directory of the run's logs and checkpoints. Required."""
    run: str = ""
    """Id by which the reward service knows the run; empty: one is made and kept over resumes."""
    num_steps: int = 100
    """PPO steps; each is `ppo.batch_size` episodes."""
    seed: int = 0
    mixed_precision: Literal["no", "bf16"] = "no"
    checkpoint_every_steps: int = 20
    """And after the last step. 0: after the last step only."""
    keep_checkpoints: int = 2
    """Older ones are removed."""
    samples_every_steps: int = 10
    """0: never."""
    samples_per_step: int = 4
    tensorboard: bool = True
    """If it can be imported."""


@dataclass(frozen=True, slots=True)
class PPOConfig:
    """All settings of a run, by section."""

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    kl: KLConfig = field(default_factory=KLConfig)
    ppo: UpdateConfig = field(default_factory=UpdateConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        """Raises ConfigError with every rule that is broken, so that one look mends them all."""
        if broken := _broken_rules(self):
            raise ConfigError("the settings do not fit together:\n" + "\n".join(f"  - {rule}" for rule in broken))

    @property
    def optimizer_steps_per_step(self) -> int:
        return self.ppo.num_epochs * self.ppo.num_minibatches


def _broken_rules(config: PPOConfig) -> list[str]:
    policy, lora, rollout, reward, kl, ppo, train = (
        config.policy,
        config.lora,
        config.rollout,
        config.reward,
        config.kl,
        config.ppo,
        config.train,
    )
    fixed_length = rollout.min_response_tokens == rollout.max_response_tokens
    rules = [
        (bool(policy.model), "policy.model is missing: give the directory of the starting policy"),
        (
            policy.dtype == "float32" or lora.rank > 0,
            f"policy.dtype is {policy.dtype}: most of Adam's steps are too small to change a weight of that precision, "
            'so next to nothing would be learnt: set train.mixed_precision = "bf16" instead',
        ),
        (lora.rank >= 0 and lora.alpha > 0, "lora.rank must not be negative, and lora.alpha must be above 0"),
        (
            lora.rank > 0 or not (lora.target_modules or lora.merge),
            "lora.target_modules and lora.merge are for adapters: set lora.rank, or remove them",
        ),
        (bool(config.data.prompts), "data.prompts is missing: give a JSON Lines file"),
        (bool(reward.model), 'reward.model is missing: give a selector, for example "helpfulness@stable"'),
        (bool(train.output), "train.output is missing: give a directory for logs and checkpoints"),
        (
            not config.critic.model or config.critic.kind == "separate",
            'critic.model is the trunk of a separate critic: set critic.kind = "separate", or remove critic.model',
        ),
        (
            not config.critic.init or config.critic.kind == "separate",
            'a reward model is the start of a separate critic: set critic.kind = "separate", or remove critic.init',
        ),
        (
            not (config.critic.init and config.critic.model),
            "critic.init and critic.model both say where the critic's trunk starts: remove one",
        ),
        (
            not config.data.where or "=" in config.data.where,
            f'data.where is {config.data.where!r}: write it as "field=value"',
        ),
        (config.data.max_prompt_tokens >= 1, "data.max_prompt_tokens must be at least 1"),
        (
            rollout.temperature > 0,
            f"rollout.temperature is {rollout.temperature}: PPO needs a policy that samples, so it must be above 0",
        ),
        (rollout.max_response_tokens >= 1, "rollout.max_response_tokens must be at least 1"),
        (
            0 <= rollout.min_response_tokens <= rollout.max_response_tokens,
            f"rollout.min_response_tokens is {rollout.min_response_tokens}: it must lie between 0 and "
            f"rollout.max_response_tokens ({rollout.max_response_tokens})",
        ),
        (rollout.micro_batch_size >= 1, "rollout.micro_batch_size must be at least 1"),
        (
            not fixed_length or (reward.missing_eos_penalty is None and reward.missing_eos_score is None),
            "all responses have the same length and none ends with EOS, so reward.missing_eos_penalty or _score would "
            "strike each of them: remove it, or set rollout.min_response_tokens below rollout.max_response_tokens",
        ),
        (
            reward.missing_eos_penalty is None or reward.missing_eos_score is None,
            "reward.missing_eos_penalty and reward.missing_eos_score exclude each other: remove one",
        ),
        (
            reward.missing_eos_penalty is None or reward.missing_eos_penalty > 0,
            "reward.missing_eos_penalty is subtracted, so it must be above 0",
        ),
        (
            "{prompt}" in reward.prompt_template,
            'reward.prompt_template has no "{prompt}", so the reward model would not see the prompt',
        ),
        (
            reward.input == "text" or reward.prompt_template == "{prompt}",
            'reward.prompt_template is for text: set reward.input = "text", or remove the template',
        ),
        (reward.clip is None or reward.clip > 0, "reward.clip must be above 0; remove it to clip nothing"),
        (reward.timeout_s > 0, "reward.timeout_s must be above 0"),
        (reward.patience_s >= 0, "reward.patience_s must not be negative"),
        (
            reward.normalize_samples == 0 or reward.normalize_samples >= 16,
            f"reward.normalize_samples is {reward.normalize_samples}: too few for a standard deviation; "
            "use at least 16, or 0 to leave scores as they are",
        ),
        (kl.coefficient >= 0, "kl.coefficient must not be negative"),
        (
            kl.controller == "fixed" or (kl.coefficient > 0 and kl.target > 0 and kl.horizon > 0),
            "the adaptive controller multiplies, so kl.coefficient, kl.target and kl.horizon must be above 0",
        ),
        (
            min(ppo.batch_size, ppo.num_epochs, ppo.num_minibatches) >= 1,
            "ppo.batch_size, ppo.num_epochs and ppo.num_minibatches must be at least 1",
        ),
        (
            ppo.num_minibatches < 1 or ppo.batch_size % ppo.num_minibatches == 0,
            f"ppo.batch_size ({ppo.batch_size}) is not a multiple of ppo.num_minibatches ({ppo.num_minibatches})",
        ),
        (ppo.micro_batch_size is None or ppo.micro_batch_size >= 1, "ppo.micro_batch_size must be at least 1"),
        (ppo.learning_rate > 0, "ppo.learning_rate must be above 0"),
        (
            0 <= ppo.warmup_steps < max(train.num_steps, 1),
            f"ppo.warmup_steps ({ppo.warmup_steps}) must be below train.num_steps ({train.num_steps})",
        ),
        (ppo.max_grad_norm > 0, "ppo.max_grad_norm must be above 0; use inf to clip nothing"),
        (ppo.clip_range > 0 and ppo.value_clip_range > 0, "ppo.clip_range and value_clip_range must be above 0"),
        (
            ppo.value_coefficient >= 0 and ppo.entropy_coefficient >= 0,
            "ppo.value_coefficient and ppo.entropy_coefficient must not be negative",
        ),
        (0 <= ppo.gamma <= 1 and 0 <= ppo.gae_lambda <= 1, "ppo.gamma and ppo.gae_lambda must lie in 0..1"),
        (ppo.stop_kl is None or ppo.stop_kl > 0, "ppo.stop_kl must be above 0; remove it to never stop early"),
        (train.num_steps >= 1, "train.num_steps must be at least 1"),
        (train.seed >= 0, "train.seed must not be negative"),
        (train.checkpoint_every_steps >= 0, "train.checkpoint_every_steps must not be negative"),
        (train.keep_checkpoints >= 1, "train.keep_checkpoints must be at least 1"),
        (
            train.samples_every_steps >= 0 and train.samples_per_step >= 0,
            "train.samples_every_steps and train.samples_per_step must not be negative",
        ),
    ]
    return [text for is_kept, text in rules if not is_kept]
