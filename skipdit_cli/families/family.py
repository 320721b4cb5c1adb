"""What the package knows about one transformer class, as one frozen dataclass.

Everything but the name is optional: a class that needs its trunk declared, and nothing else, is one line of
``trunks_only``. Family files import neither torch nor diffusers at the top, because ``skipdit --help`` loads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from skipdit_cli.families.captions import TextConditioning
from skipdit_cli.families.declarations import Backbone

TEXT_WIDTHS = (
    "joint_attention_dim",
    "caption_channels",
    "text_embed_dim",
    "text_dim",
    "cap_feat_dim",
    "cross_attention_dim",
)
"""Config keys that hold the width of encoded text, the first that a config has."""


@dataclass(frozen=True)
class ExampleSize:
    """Sizes of an example forward that neither the signature nor the config of the class tells.

    Args:
        grid: Latent frames, height and width of the pipeline's default output, where the config has no such sizes.
        text_tokens: Number of text tokens, where the config does not fix it.
        text_width: Config keys that hold the width of encoded text; the first one that is set counts.
        frames_first: Video latents are (batch, frames, channels, height, width).
        patch: Latent frames, height and width of a token, where the config has another meaning of ``patch_size``.
        batched_ids: Position ids have a batch dimension.
        arguments: Forward arguments by name, each with a function from the ``Example`` to its value.
    """

    grid: tuple[int, int, int] | None = None
    text_tokens: int = 256
    text_width: tuple[str, ...] = TEXT_WIDTHS
    frames_first: bool = False
    patch: tuple[int, int, int] | None = None
    batched_ids: bool = False
    arguments: Mapping[str, Callable] = field(default_factory=dict)


@dataclass(frozen=True)
class PipelineAround:
    """The pipeline that a transformer without one is put in.

    Args:
        name: Class name of the pipeline, which takes ``transformer``, ``scheduler`` and perhaps ``vae``; its other
            required parts stay None.
        flow: Class name of the pipeline for weights that were trained by flow matching; None if there are no such.
        by_class: The pipeline is sampled by class labels, or without a condition. False for a text-conditional one.
        timestep_spacing: Of the default scheduler, as diffusers' schedulers name it.
        sample_flags: What ``skipdit sample`` needs besides the model to sample several classes; empty for nothing.
    """

    name: str
    flow: str | None = None
    by_class: bool = True
    timestep_spacing: str = "linspace"
    sample_flags: str = ""


@dataclass(frozen=True)
class Training:
    """How transformers of a class are trained.

    Args:
        pipelines: Pipelines whose transformers are trained. Others of the same class have inputs besides noise and
            the condition.
        siblings: Pipelines that start from an image or a video, and the pipeline that their transformer is trained
            in: it has no inputs but noise and the condition there.
        captions: How the transformer is conditioned on captions; None for class labels or no condition.
        videos: Samples are videos.
        clip_frames: Frames of a clip where the model takes any number; None if its config has ``video_length``.
        packing: Height and width, in latents, of the tokens that the pipeline packs latents into before the
            transformer; (1, 1) if the transformer cuts its patches itself.
    """

    pipelines: tuple[str, ...]
    siblings: Mapping[str, str] = field(default_factory=dict)
    captions: type[TextConditioning] | None = None
    videos: bool = False
    clip_frames: int | None = None
    packing: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class OfficialFiles:
    """Checkpoints of the code that a family was published with, which ``skipdit convert`` reads.

    Args:
        kind: Name of the model in messages.
        title, title_with_branches, flow_title: Name of a checkpoint: vanilla, with skip branches, and trained by flow
            matching.
        marker: Beginning of a tensor name that tells the family; empty for the family of all other checkpoints.
        hub_ids: Hub repositories whose weights are known to come from the official code.
        modules: Official to diffusers' names of modules with a weight and a bias, outside of the blocks.
        block_modules: The same within a block.
        tensors: Official to diffusers' names of the timestep embedder's tensors.
        label_table: Official and diffusers' name of the label embedding.
        embedders_in: Prefix of both embedders within every block; empty where they lie outside of the blocks.
        frame_table: Official name of the temporal position table; empty for image models.
        needs_labels: diffusers' class always has a label embedding.
        config: Values that every config of the family has.
    """

    kind: str
    title: str
    title_with_branches: str
    flow_title: str = ""
    marker: str = ""
    hub_ids: tuple[str, ...] = ()
    modules: Mapping[str, str] = field(default_factory=dict)
    block_modules: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    label_table: tuple[str, str] = ("", "")
    embedders_in: str = ""
    frame_table: str = ""
    needs_labels: bool = False
    config: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """All that the package knows about one transformer class.

    Args:
        name: Class name of the transformer.
        trunk: Declaration of its trunk; None if the trunk is found in a forward.
        example: Sizes of an example forward.
        former_names: Class names that old configs have for it, each with the ``norm_type`` that told it from others.
        classes: Dotted paths of the model and pipeline classes that are not diffusers' own. They come before classes
            of diffusers with the same name.
        pipeline: The pipeline for a transformer that comes without one; None if that needs more parts.
        training: How it is trained; None if it is not.
        initialise: Function that draws the weights of a new model in place, to train it from scratch; None if that is
            not done.
        official: Checkpoints of its official code; None if there are none to read.
        build: Function from the class and a config to the model, where ``from_config`` does not suffice.
        own_keys: Config keys that ``build`` reads and diffusers' class does not know.
    """

    name: str
    trunk: Backbone | None = None
    example: ExampleSize = ExampleSize()
    former_names: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    pipeline: PipelineAround | None = None
    training: Training | None = None
    initialise: Callable | None = None
    official: OfficialFiles | None = None
    build: Callable | None = None
    own_keys: tuple[str, ...] = ()
