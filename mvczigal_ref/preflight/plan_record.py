"""What a plan says: counts, FLOPs and bytes of one iteration on one process."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

__all__ = ["Calls", "Flops", "Memory", "Parameters", "Plan"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Calls:
    """Network calls of one process in one iteration; a doubled batch is one call."""

    rollout: int
    """Without gradient, to sample; inversions among them [calls]."""
    value: int
    """Without gradient, once the parameters have changed: the second arm's density [calls]."""
    replay: int
    """With gradient [calls]."""
    recompute: int
    """Forward passes that checkpointing makes once more [calls]."""
    backward: int
    """[calls]"""

    @property
    def forward(self) -> int:
        """Calls that a program makes itself: all but recomputation and backward passes."""
        return self.rollout + self.value + self.replay

    @property
    def total(self) -> int:
        """All of them."""
        return self.forward + self.recompute + self.backward


@dataclass(frozen=True, kw_only=True, slots=True)
class Flops:
    """Floating-point operations of one process in one iteration, by what they are for [FLOP]."""

    rollout: int
    """Of :attr:`Calls.rollout`."""
    value: int
    """Of :attr:`Calls.value`."""
    replay: int
    """Of :attr:`Calls.replay`."""
    recompute: int
    """Of :attr:`Calls.recompute`."""
    backward: int
    """Of :attr:`Calls.backward`."""
    decode: int
    """Of the autoencoder."""

    @property
    def total(self) -> int:
        """All of them but the scorers'."""
        return _sum(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """Numbers that networks hold [parameters]."""

    unet: int
    """Frozen network with its row attention, without what is trained beside it."""
    camera_encoder: int
    """Of the cameras' maps."""
    trained: int
    """A LoRA, or all of the UNet, which then counts here alone."""
    text_encoders: int
    """Both."""
    vae: int
    """The autoencoder."""
    scorers: int
    """Those that compute in this process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Peak memory on one process's device by part [bytes].

    Fields up to ``optimizer`` are there all along; where frozen parts are offloaded, those of
    them that are not are in the stages in which they work. What torch's allocator, its libraries
    and the driver take for themselves is not in it.
    """

    unet: int
    """Frozen weights of the UNet, and of the camera encoder unless it is offloaded."""
    trained: int
    """Trained weights."""
    text_encoders: int
    """Weights."""
    vae: int
    """Weights."""
    scorers: int
    """Weights."""
    features: int
    """Of the cameras."""
    optimizer: int
    """Both moments."""
    rollouts: int
    """All stored trajectories of an iteration; 0 where they are on the CPU."""
    gradients: int
    """Of the trained weights."""
    sampling: int
    """One call of a rollout, at its peak."""
    decoding: int
    """Decoding one slice's second arm beside the images of its first; with the autoencoder's
    weights where they are offloaded."""
    scoring: int
    """The images of both arms and the hungriest scorer on one chunk; with its weights where they
    are offloaded."""
    replay: int
    """One microbatch with its backward pass, at its peak."""
    saved: int
    """What one microbatch's graph keeps, as configured; a part of ``replay``."""
    saved_checkpointed: int
    """The same with gradient checkpointing."""
    saved_plain: int
    """The same without."""
    offloaded: bool = False
    """Whether text encoders, autoencoder and scorers are there only while they work."""

    @property
    def resident(self) -> int:
        """What is there all along."""
        always = self.unet + self.trained + self.features + self.optimizer
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
            "rollout": base + self.sampling,
            "reward": base + max(self.decoding, self.scoring),
            "update": base + self.gradients + self.replay,
        }

    @property
    def peak(self) -> int:
        """The most of all stages."""
        return max(self.stages.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What one iteration of a run takes."""

    source: str
    """Where the sizes of the networks are from."""
    processes: int
    """Processes of the run."""
    objects: int
    """Prompts of an iteration, over all processes [objects]."""
    objects_per_process: int
    """Prompts of each [objects]."""
    views: int
    """Of an object [views]."""
    latent: tuple[int, int, int]
    """Channels, height and width of a view's latent."""
    images: int
    """Decoded by one process: both arms of its objects [images]."""
    scorer_calls: Mapping[str, int]
    """Calls of one process to each scorer [calls]."""
    optimizer_steps: int
    """Parameter changes of an iteration [steps]."""
    calls: Calls
    """Network calls."""
    flops: Flops
    """Operations."""
    parameters: Parameters
    """Sizes."""
    memory: Memory
    """Peak memory."""


def _sum(record: Flops) -> int:
    return sum(getattr(record, field.name) for field in fields(record))
