"""`models.mapped`: laws, memory."""

import resource
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from mvczigal_ref.models.components import load_components
from mvczigal_ref.models.hub import load_sdxl_components
from mvczigal_ref.models.loading import load_model
from mvczigal_ref.models.mapped import cast_as_read, forget, keeps_fp32
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.models.unet.loading import load_unet
from mvczigal_ref.models.unet.tiny import tiny_unet_components
from tests.unit.models.published import write_published

PEAK = Path("/proc/self/clear_refs")
HALF = [torch.bfloat16, torch.float16]


def clip(width: int, layers: int) -> CLIPTextModel:
    """Build a text encoder."""
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    return CLIPTextModel(
        CLIPTextConfig(
            **sizes, num_attention_heads=4, vocab_size=99, bos_token_id=0, eos_token_id=1
        )
    )


def unet(width: int) -> UNet2DConditionModel:
    """Build a UNet."""
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(width, 2 * width), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=4,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=width,
    )  # fmt: skip


def t5(width: int, layers: int) -> T5EncoderModel:
    """Build a text encoder whose embedding is under two names; layers have the parts of T5-XXL."""
    sizes = {"d_model": width, "d_ff": 5 * width // 2, "num_layers": layers, "num_heads": 4}
    proportions = {"d_kv": width // 4, "feed_forward_proj": "gated-gelu"}
    return T5EncoderModel(T5Config(**sizes, **proportions, vocab_size=99))


def flux(width: int) -> FluxTransformer2DModel:
    """Build a flow transformer."""
    return FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=width // 2, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(width // 2 - 8, 4, 4),
    )  # fmt: skip


SMALL = {
    "unet": lambda: unet(32),
    "vae": lambda: AutoencoderKL(block_out_channels=(32,)),
    "clip": lambda: clip(8, 1),
    "t5": lambda: t5(8, 1),
    "flux": lambda: flux(32),
}


def stored(network, folder: Path, dtype: torch.dtype) -> int:
    """Save a network; give the size of its tensors' file [bytes]."""
    network.to(dtype).save_pretrained(folder)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def status(name: str) -> int:
    """Read a figure of this process's memory [bytes]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def growth(kind, folder: Path, dtype: torch.dtype) -> int:
    """Load a network; give the growth of resident memory at its peak [bytes]."""
    PEAK.write_text("5")
    before = status("VmRSS")
    load_model(kind, folder, dtype=dtype)
    return status("VmHWM") - before


def outside(network, folder: Path) -> int:
    """Sum up a network's weights that lie in no file of a folder [bytes]."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines if str(folder) in line]
    files = [range(int(first, 16), int(last, 16)) for first, last in ranges]
    weights = [p for p in network.parameters() if not any(p.data_ptr() in file for file in files)]
    return sum(p.nbytes for p in weights)


def multiview(folder: Path):
    """Store the multi-view network, and give its loader."""
    small = {"channels": (16, 16, 16), "num_heads": (1, 1, 1)}
    tiny_components(seed=0, **small).save(folder, dtype=torch.float16)
    return load_components, folder


def single_view(folder: Path):
    """Store a single-view network, and give its loader."""
    tiny_unet_components("sdxl", seed=0).save(folder, dtype=torch.float16)
    return load_unet, folder


def published(folder: Path):
    """Store the published files, the UNet's in fp16 and the adapter's in fp32."""
    return load_sdxl_components, write_published(folder)


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("file", [torch.float32, torch.float16])
def test_bits_and_types_are_the_library_s(name, dtype, file, tmp_path):
    """Weights cast here, one by one, are those that the library casts; so are its settings."""
    torch.manual_seed(0)
    network = SMALL[name]()
    stored(network, tmp_path, file)
    option = "torch_dtype" if hasattr(network, "load_config") else "dtype"
    expected = type(network).from_pretrained(tmp_path, **{option: dtype})
    loaded = load_model(type(network), tmp_path, dtype=dtype)

    tables = [{**n.state_dict(), **dict(n.named_buffers())} for n in (expected, loaded)]
    pairs = zip(*(table.items() for table in tables), strict=True)
    for (key, value), (other_key, other) in pairs:
        assert key == other_key
        assert value.dtype == other.dtype, key
        assert torch.equal(value, other), key
    assert getattr(loaded.config, "dtype", None) == getattr(expected.config, "dtype", None)


def test_the_type_of_the_file_is_kept_where_that_is_asked(tmp_path):
    """Its pages are shared with every other process that reads the file."""
    stored(unet(32), tmp_path, torch.bfloat16)

    assert load_model(UNet2DConditionModel, tmp_path, dtype=torch.float32, mapped=True).dtype == (
        torch.bfloat16
    )


@pytest.mark.parametrize("store", [multiview, single_view, published])
def test_a_unet_may_stay_in_its_files_until_it_is_cast(store, tmp_path):
    """Row attention too; cast block by block, it has the bits of one that was cast at once."""
    load, place = store(tmp_path)
    dtype = torch.bfloat16 if store is published else torch.float32
    mapped, whole = (load(place, dtype=dtype, mapped=m).policy for m in (True, False))

    assert mapped.dtype == torch.float16
    if PEAK.exists():
        assert outside(mapped.unet, tmp_path) == 0
    cast = {name: value.to(dtype) for name, value in mapped.state_dict().items()}
    expected = whole.state_dict()
    assert list(cast) == list(expected)
    assert all(torch.equal(cast[name], value) for name, value in expected.items())
    assert [p.requires_grad for p in mapped.parameters()] == [
        p.requires_grad for p in whole.parameters()
    ]


def test_the_library_s_fp32_parts_are_its_own_affair():
    """T5 keeps a projection in fp32 beside fp16, and not beside bf16."""
    assert keeps_fp32(T5EncoderModel, torch.float16)
    assert not keeps_fp32(T5EncoderModel, torch.bfloat16)
    assert not keeps_fp32(T5EncoderModel, torch.float32)
    assert not keeps_fp32(UNet2DConditionModel, torch.float16)


def test_t5_xxl_in_fp16_takes_a_fifth_more_than_its_file():
    """24 projections of 4096 times 10240 in 4 bytes, the rest of 4.76e9 weights in 2."""
    with torch.device("meta"):
        network = T5EncoderModel(
            T5Config(
                d_model=4096, d_ff=10240, num_layers=24, num_heads=64, d_kv=64, vocab_size=32128,
                feed_forward_proj="gated-gelu",
            )
        )  # fmt: skip
    file = 2 * sum(p.numel() for p in network.parameters())
    cast_as_read(network, torch.float16)

    assert sum(p.numel() for p in network.parameters() if p.nbytes > 2 * p.numel()) == (
        24 * 4096 * 10240
    )
    assert file == pytest.approx(9.52e9, rel=1e-3)
    assert sum(p.nbytes for p in network.parameters()) == pytest.approx(11.54e9, rel=1e-3)


def test_t5_in_fp16_holds_that_projection_in_fp32_and_no_more(tmp_path):
    """As a plan counts it."""
    network = t5(8, 2)
    stored(network, tmp_path, torch.float16)
    loaded = load_model(T5EncoderModel, tmp_path, dtype=torch.float16)
    wide = [name for name, p in loaded.named_parameters() if p.dtype == torch.float32]

    assert len(wide) == 2
    assert all(name.endswith(".wo.weight") for name in wide)
    cast = dict(cast_as_read(network, torch.float16).named_parameters())
    assert {n: p.dtype for n, p in cast.items()} == {
        n: p.dtype for n, p in loaded.named_parameters()
    }


def test_neighbours_in_memory_are_not_forgotten():
    """Whole pages inside a tensor alone are given back."""
    page = resource.getpagesize()
    memory = torch.ones(5 * page, dtype=torch.uint8)
    forget(memory[page // 2 : 4 * page])

    assert memory[: page // 2].all()
    assert memory[4 * page :].all()


# -- memory ------------------------------------------------------------------------------


@pytest.mark.skipif(not PEAK.exists(), reason="the peak of resident memory is read from Linux")
@pytest.mark.parametrize("file", [torch.float32, torch.float16])
def test_a_network_is_never_twice_in_memory(file, tmp_path):
    """While a file of N bytes is read and cast, memory grows by less than 1.3 N."""
    size = stored(clip(512, 6), tmp_path, file)
    growth(CLIPTextModel, tmp_path, file)  # what the library loads at first is not counted

    assert growth(CLIPTextModel, tmp_path, torch.bfloat16) < 1.3 * size


@pytest.mark.slow
@pytest.mark.skipif(not PEAK.exists(), reason="the peak of resident memory is read from Linux")
@pytest.mark.parametrize(
    ("build", "file"),
    [
        (build, file)
        for build in (
            lambda: unet(224),
            lambda: clip(1024, 5),
            lambda: flux(1024),
            lambda: t5(1024, 5),
        )
        for file in (torch.float32, torch.float16)
    ],
)
def test_a_large_network_is_never_twice_in_memory(build, file, tmp_path):
    """Files of about 200 MB, of every kind of network."""
    network = build()
    size = stored(network, tmp_path, file)
    growth(type(network), tmp_path, file)

    assert growth(type(network), tmp_path, torch.bfloat16) < 1.3 * size
