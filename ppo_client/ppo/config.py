"""Every setting of a PPO run: small dataclasses with defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ppo_client.ppo.config_rules import broken_rules
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
    """Directory of the reference model of the KL penalty; empty: `model`, as it was before training. It
    is read by the policy's EOS, whatever its own generation_config.json names."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights. Only float32 can be trained; computing in bfloat16 is `train.mixed_precision`. With LoRA, what
    is trained is float32 in any case, and the rest may be bfloat16."""
    gradient_checkpointing: bool = False
    """Recomputes activations in the backward pass, a separate critic's too: less memory, about a third more time."""


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
    """Directory of a reward model (sequence classification, one label, the policy's tokenizer and architecture) that a
    separate critic starts from, score head included. Empty: the value head starts at zero."""
    learning_rate: float = 0.0
    """Of a separate critic, under `ppo.schedule`. 0: the policy's, `ppo.learning_rate`. Not with DeepSpeed."""


@dataclass(frozen=True, slots=True)
class DataConfig:
    """The prompts."""

    prompts: str = ""
    """One prompt a row: text, chat messages or token ids. A file of JSON Lines, a JSON array or CSV (`.gz`, too), or
    Parquet, or a folder by datasets' `save_to_disk`. Required."""
    field: str = "prompt"
    """Name of the field that holds the prompt."""
    where: str = ""
    """`name=value`: only rows whose field `name` has this value; `true` and `false` are booleans', too. Empty: all
    rows."""
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
    """Rows that are generated and evaluated together, per process."""
    score_chunk_size: int = 8
    """Responses are sent to be scored, so many at a time, as they end, while the rest of their micro-batch is still
    being written. The last ones of a micro-batch go together."""
    generator: Literal["own", "vllm"] = "own"
    """What writes. `vllm`, experimental: an engine in this process, given the weights before each rollout; for
    decoder-only policies. Its log-probabilities are checked against the policy's, and tokens weighted by their ratio
    as `max_importance_weight` says. Written against vLLM 0.33.0 and tested with a stand-in for it, never on a GPU."""
    vllm_memory_share: float = 0.3
    """Of a GPU's memory, for vLLM's weights and cache."""
    vllm_max_gap: float = 0.1
    """Ends the run where vLLM's log-probabilities and the policy's differ by more, in nats, mean |Δ| per token."""
    max_staleness: Literal[0, 1] = 0
    """0: on-policy. 1: the responses of the next step are sampled before the update of this one, so that scoring has
    all of it for time; they are then one update old, which truncated importance weights make up for."""
    max_importance_weight: float = 2.0
    """At which the weights π / π_sampled are truncated, per token, of responses that are stale or by vLLM."""
    log_probs: Literal["auto", "sampling", "forward"] = "auto"
    """Where the behaviour policy's log-probabilities come from: noted while sampling, or a forward pass of their
    own. `auto`: sampling in full fp32 without LoRA, else forward, for the two differ by rounding."""


@dataclass(frozen=True, slots=True)
class RewardModelConfig:
    """One of several reward models; a response's score is the weighted sum of theirs."""

    model: str
    """Selector: `name`, `name@3` or `name@label`."""
    weight: float = 1.0
    """Not 0; negative: a penalty."""
    calibrated: bool = False
    """As `reward.calibrated`, for this model."""


@dataclass(frozen=True, slots=True)
class RewardConfig:
    """Where scores come from, and how a score becomes a reward."""

    targets: tuple[str, ...] = ()
    """Addresses of the reward service, `host:port`; empty: the environment variable RM_TARGET."""
    model: str = ""
    """Selector: `name`, `name@3` or `name@label`. This or `models` is required."""
    models: tuple[RewardModelConfig, ...] = ()
    """Several models, as `[[reward.models]]` tables; asked at the same time."""
    input: Literal["text", "token_ids"] = "text"
    """What is sent: decoded text without special tokens, or the ids as they were sampled (EOS included)."""
    prompt_template: str = "{prompt}"
    """The reward model's view of a text prompt; `{prompt}` stands for it."""
    truncation: Literal["", "refuse", "keep_end", "keep_start"] = ""
    """What becomes of prompt and response together where they are longer than the reward model reads: `refuse`, an
    error; `keep_end` and `keep_start`, what is scored of them. Empty: the version's own rule."""
    calibrated: bool = False
    """Asks for scores on the model's common scale, so that another version's are comparable; every version needs a
    calibration. False: raw scores."""
    on_version_change: Literal["auto", "stop", "follow", "recalibrate"] = "auto"
    """When another version answers. `auto`: follow for `name@label`, stop for the others. `recalibrate`: follow, with
    calibrated scores from the start, so that both versions' are on one scale."""
    lease_s: float = 3600.0
    """How long the service keeps the version of a bare `name` for the run after its last sign of life. The run gives
    one three times as often, and gives the version back when it has ended."""
    timeout_s: float = 60.0
    """Deadline of one scoring call, retries included."""
    patience_s: float = 600.0
    """How long to wait for a service that is away before checkpointing and leaving."""
    empty_score: float | None = None
    """Takes the place of the score of a response without text (EOS first, or special tokens alone), which the service
    is not asked for. Absent: such a response ends the run."""
    on_failed_item: Literal["stop", "drop"] = "stop"
    """When the service has no score for one response and its prompt, and asking again cannot help: too long for the
    model, say, or NaN. `drop`: nothing is learnt from that episode, and the log counts it. Failures of whole calls
    stop the run in any case."""
    normalize_samples: int = 0
    """Scores of this many responses of the starting policy fix a gain and a bias, so that they have mean 0 and
    standard deviation 1; where the run goes on with a version of another scale, they are fitted anew by the scores of
    that step. 0: scores as they are."""
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
    """β, at the start where it does not stay the same; set on resume, from there on."""
    controller: Literal["fixed", "adaptive", "scheduled"] = "fixed"
    """`adaptive`: β rises and falls until the KL is `target`. `scheduled`: from `coefficient` in a straight line to
    `final_coefficient`, over `schedule_steps`."""
    target: float = 6.0
    """Nats per episode (sum over the tokens) that the adaptive controller aims at."""
    horizon: float = 10_000.0
    """Episodes over which the adaptive controller may double β, roughly; larger is slower."""
    final_coefficient: float = 0.0
    """β from step `schedule_steps` + 1 on, where it is scheduled."""
    schedule_steps: int = 100
    """PPO steps of the straight line; not `train.num_steps`, so that a run can be extended."""


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
    """Gradients are scaled down to this global norm; a separate critic's by themselves, so that a large value loss
    takes nothing from the policy. DeepSpeed scales both by one norm."""
    clip_range: float = 0.2
    """ε of the policy's ratio."""
    dual_clip: float | None = None
    """c > 1: where an advantage A is negative, a token costs −c·A at most, however far the ratio has grown; 3 is usual.
    Absent: no bound."""
    value_clip_range: float = 0.2
    value_coefficient: float = 0.1
    """Of the value loss. To a separate critic it hardly matters, for Adam sees no scale: see `critic.learning_rate`. A
    shared one learns little where the loss is small beside the policy's: raise it if `explained_variance` in
    metrics.jsonl stays near 0."""
    entropy_coefficient: float = 0.0
    gamma: float = 1.0
    gae_lambda: float = 0.95
    whiten_rewards: bool = False
    """Scales token rewards to variance 1 over the batch; the mean stays."""
    whiten_advantages: bool = True
    stop_kl: float | None = None
    """Ends a step's update before a minibatch whose approximate KL from the sampling policy is larger."""


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """Looking at the policy from outside, on prompts it does not train on. Changes nothing about what is learnt."""

    prompts: str = ""
    """A file as `data.prompts`, with its `field`. Empty: no evaluation."""
    where: str = ""
    """As `data.where`."""
    every_steps: int = 10
    """And after the last step."""
    count: int = 64
    """Prompts: the first so many of the file."""
    model: str = ""
    """Selector of the second opinion, best another version than the one that is learnt from: it judges the policy
    against the reference, so that over-optimisation shows. Empty: the win rate is by the training reward."""
    batch_size: int = 64
    """Rows that are generated together, per process."""
    best_by: Literal["judge_mean", "win_rate", "score_mean"] = "judge_mean"
    """The evaluation with the highest value is kept as OUTPUT/best, a checkpoint beside the last ones."""
    patience: int = 0
    """Ends the run after so many evaluations in a row without a new best. 0: never."""
    max_kl: float | None = None
    """Ends the run once an evaluation's KL from the reference is larger, in nats per episode."""


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
    tracking: tuple[Literal["jsonl", "tensorboard", "wandb"], ...] = ("jsonl", "tensorboard")
    """Where numbers go. JSON Lines are written in any case; TensorBoard if it can be imported; wandb must be there."""
    wandb_project: str = "ppo-client"


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
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        """Raises ConfigError with every rule that is broken, so that one look mends them all."""
        if broken := broken_rules(self):
            raise ConfigError("the settings do not fit together:\n" + "\n".join(f"  - {rule}" for rule in broken))

    @property
    def optimizer_steps_per_step(self) -> int:
        return self.ppo.num_epochs * self.ppo.num_minibatches

    @property
    def is_in_fp32(self) -> bool:
        """Whether the policy computes in float32 throughout, so that two forward passes differ by little."""
        return self.policy.dtype == "float32" and self.train.mixed_precision == "no"
