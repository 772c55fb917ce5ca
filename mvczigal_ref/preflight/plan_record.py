"""Plan: counts, operations and bytes of one iteration on one process."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

__all__ = ["Calls", "Flops", "Memory", "Parameters", "Plan"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Calls:
    """Network calls of one process in one iteration; a doubled batch is one call."""

    rollout: int
    """Calls without gradient, to sample; inversions among them [calls]."""
    value: int
    """Calls without gradient that score stored actions: of a pair's second arm once the parameters
    have changed, and of groups under their captions [calls]."""
    replay: int
    """Calls with gradient [calls]."""
    recompute: int
    """Forward passes that checkpointing makes once more [calls]."""
    backward: int
    """Backward passes [calls]."""
    reference: int = 0
    """Calls without gradient of the reference policy, that the objective stays near [calls]."""
    old: int = 0
    """Calls without gradient of the policy that sampled, on the forward process [calls]."""

    @property
    def forward(self) -> int:
        """Calls that a program makes itself: all but recomputation and backward passes."""
        return self.rollout + self.value + self.reference + self.old + self.replay

    @property
    def total(self) -> int:
        """All of them."""
        return self.forward + self.recompute + self.backward


@dataclass(frozen=True, kw_only=True, slots=True)
class Flops:
    """Floating-point operations of one process in one iteration, by their purpose [FLOP]."""

    rollout: int
    """Operations of :attr:`Calls.rollout`."""
    value: int
    """Operations of :attr:`Calls.value`."""
    replay: int
    """Operations of :attr:`Calls.replay`."""
    recompute: int
    """Operations of :attr:`Calls.recompute`."""
    backward: int
    """Operations of :attr:`Calls.backward`."""
    decode: int
    """Operations of the autoencoder."""
    reference: int = 0
    """Operations of :attr:`Calls.reference`."""
    old: int = 0
    """Operations of :attr:`Calls.old`."""

    @property
    def total(self) -> int:
        """All of them but those of scorers, text encoders and language models."""
        return _sum(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """Numbers that networks hold [parameters]."""

    network: int
    """Frozen UNet with its row attention, or transformer, without its trained parameters."""
    camera_encoder: int
    """Encoder of the cameras' maps; 0 for networks without."""
    trained: int
    """A LoRA, or all of the network, which then counts here alone."""
    text_encoders: int
    """All of them."""
    vae: int
    """The autoencoder."""
    scorers: int
    """Those that compute in this process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Peak memory of one process by part [bytes]: on its device but where the host is named.

    Fields up to ``optimizer`` are there all along; where frozen parts are offloaded, those of
    them that are not are in the stages in which they work. What torch's allocator, its libraries
    and the driver take for themselves is not in it, nor is a language model in this process.
    """

    network: int
    """Frozen weights of the network, and of the camera encoder unless it is offloaded."""
    trained: int
    """Trained weights."""
    text_encoders: int
    """Weights of the text encoders."""
    vae: int
    """Weights of the autoencoder."""
    scorers: int
    """Weights of the scorers."""
    features: int
    """Features of the cameras."""
    optimizer: int
    """Both moments."""
    rollouts: int
    """All stored samples of an iteration, or of two with ``rollout.ahead``, with the noise that the
    forward process gives them; 0 where they are on the CPU."""
    gradients: int
    """Gradients of the trained weights."""
    sampling: int
    """One call of a rollout, at its peak."""
    decoding: int
    """Decoding one slice; with the autoencoder's weights where they are offloaded."""
    scoring: int
    """The images of one slice, their copies where a call has several texts, and the hungriest
    scorer on one chunk; with its weights where they are offloaded."""
    replay: int
    """One microbatch with its backward pass, at its peak."""
    saved: int
    """Activations that one microbatch's graph keeps, as configured; a part of ``replay``."""
    saved_checkpointed: int
    """Activations that one microbatch's graph keeps with gradient checkpointing."""
    saved_plain: int
    """Activations that one microbatch's graph keeps without gradient checkpointing."""
    images: int = 0
    """Decoded images of one slice; a part of ``decoding`` and of ``scoring``."""
    beside_decoding: int = 0
    """Scoring of one slice while the next is decoded, where slices overlap; 0 elsewhere."""
    beside_sampling: int = 0
    """Scoring of one slice while another is sampled, where slices overlap or the next iteration is
    sampled ahead; 0 elsewhere."""
    copies: int = 0
    """Further copies of the trained weights: their average, and those of the policies that sample
    where they are not the one that learns; there all along."""
    gathered: int = 0
    """Weights, and gradients of trained ones, that a call gathers of a network whose weights are
    cut over the processes; the fields of weights are then one process's part."""
    host: int = 0
    """Memory of the host that one process takes all along: what is offloaded, and stored samples
    that are kept on the CPU."""
    loading: int = 0
    """Memory of the host that one process takes while it loads, at most and without scorers: text
    encoders, autoencoder, camera encoder, and the network; of one that is cut, a block, and the
    part where it is offloaded, since the rest stays in its file."""
    offloaded: bool = False
    """Whether text encoders, autoencoder and scorers are there only while they work."""

    @property
    def resident(self) -> int:
        """Bytes that are there all along."""
        always = self.network + self.trained + self.features + self.optimizer + self.copies
        waiting = self.text_encoders + self.vae + self.scorers
        return always if self.offloaded else always + waiting

    @property
    def stages(self) -> Mapping[str, int]:
        """Peak of each stage of an iteration."""
        base = self.resident + self.rollouts
        # Prompts are encoded when they are first met; what that takes beside the weights is little.
        prompts = {"prompts": base + self.text_encoders} if self.offloaded else {}
        return {
            **prompts,
            "rollout": base + self.gathered + self.sampling + self.beside_sampling,
            "reward": base + max(self.decoding + self.beside_decoding, self.scoring),
            "update": base + self.gathered + self.gradients + self.replay,
        }

    @property
    def peak(self) -> int:
        """The most of all stages."""
        return max(self.stages.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Counts, operations and bytes of one iteration of a run."""

    source: str
    """Source of the networks' sizes."""
    processes: int
    """Processes of the run."""
    objects: int
    """Prompts of an iteration, over all processes [objects]."""
    objects_per_process: int
    """Prompts of each process [objects]."""
    views: int
    """Views of an object [views]."""
    latent: tuple[int, int, int]
    """Channels, height and width of a view's latent."""
    images: int
    """Images that one process decodes: every sample of its objects [images]."""
    scorer_calls: Mapping[str, int]
    """Calls of one process to each scorer [calls]."""
    optimizer_steps: int
    """Parameter changes of an iteration [steps]."""
    calls: Calls
    """Network calls."""
    flops: Flops
    """Operations."""
    parameters: Parameters
    """Sizes of the networks."""
    memory: Memory
    """Peak memory."""
    samples: int = 2
    """Samples of each prompt that are judged [samples]."""
    conditions: int = 1
    """Texts that each prompt's samples are judged and learnt under; more than its own where there
    are captions, which are all taken to differ: the most that an iteration can cost."""
    recomputed_blocks: int | None = None
    """Blocks whose activations are computed again in the backward pass, where memory decides
    [blocks]; None where the setting does."""
    blocks: int | None = None
    """Blocks that memory decides on [blocks]."""
    lora_forms: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Layers of a LoRA by stage, "rollout" and "update", and by form in its largest call: "merged"
    into the weight, or "thin", two products beside it [layers]."""
    device: str = "cpu"
    """Type of the device for which these forms are chosen."""


def _sum(record: Flops) -> int:
    return sum(getattr(record, each.name) for each in fields(record))
