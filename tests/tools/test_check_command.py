"""`python -m dyme.tools.check`: what it says of checkpoints, and its estimate against what an engine holds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM

from dyme.batching.packing import pack
from dyme.config import load_config
from dyme.engine.lora import add_lora
from dyme.families import FAMILIES, load_family
from dyme.rollout.cache import column_bucket
from dyme.settings.lora import LoraConfig
from dyme.tools import footprint as mem
from dyme.tools.check.__main__ import main
from dyme.tools.check.report import adapted_linears, check, decoder_sizes
from tests.helpers.checkpoints import makers
from tests.helpers.launching import ROOT, environment

VISION = [name for name, (family, _) in sorted(makers().items()) if FAMILIES[family].modalities]


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()  # of whatever made the checkpoint
    status = main([*map(str, arguments)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def report(capsys, *arguments: object) -> dict:
    status, out, _ = run(capsys, *arguments, "--json")
    assert status == 0
    return json.loads(out)


@pytest.fixture
def yaml_of(tmp_path):
    """A run YAML of the model with the given settings."""

    def write(folder: Path, **changes: dict) -> Path:
        number = len(list(tmp_path.glob("*.yaml")))
        ds = tmp_path / f"ds{number}.json"
        ds.write_text(json.dumps({"zero_optimization": changes.pop("zero", {"stage": 3})}))
        tree = {"data": {"train": {"source": "charts", "count": 1}}, "deepspeed": str(ds), **changes}
        tree["model"] = {"path": str(folder), **changes.get("model", {})}
        (tmp_path / f"run{number}.yaml").write_text(yaml.safe_dump(tree))
        return tmp_path / f"run{number}.yaml"

    return write


# --- the report ----------


@pytest.mark.parametrize("name", sorted(makers()))
def test_every_checkpoint(checkpoint, capsys, name):
    family, model = load_family(checkpoint(name))
    told = report(capsys, checkpoint(name))
    assert told["family"] == makers()[name][0] and told["missing"] is None and told["unused"] == []
    assert told["parameters"] == sum(told["parts"].values()) == sum(p.numel() for p in model.parameters())
    assert set(told["parts"]) == set(family.parts(model))
    assert told["layers"] == len(family.decoder_layers(model))
    assert told["context"] == family.config.get_text_config().max_position_embeddings
    assert told["files"] == {"model.safetensors": (checkpoint(name) / "model.safetensors").stat().st_size}
    assert set(told["dtypes"]) == {"F32"} and told["packs"] == family.packs_trees
    assert told["special"]["end of turn"].endswith(f"({family.end_of_turn})")
    assert all(f"({token})" in told["special"]["stops"] for token in family.stop_ids)
    status, text, _ = run(capsys, checkpoint(name))
    assert status == 0 and "memory per GPU, an estimate (" in text


@pytest.mark.parametrize("name", VISION)
def test_pictures(checkpoint, capsys, tmp_path, yaml_of, name):
    folder = checkpoint(name)
    family, _ = load_family(folder)
    usual = report(capsys, folder)["pictures"]
    assert [tuple(p["size"]) for p in usual] == [(600, 400), (1200, 800)]
    (one,) = report(capsys, folder, "--size", "64x20")["pictures"]
    prompt = family.encode("-", [Image.new("RGB", (64, 20))])
    assert one["tokens"] == family.image_features(prompt.pixels) > 0
    Image.new("RGBA", (64, 20)).save(tmp_path / "a.png")
    assert report(capsys, folder, "--image", tmp_path / "a.png")["pictures"] == [one]
    cfg = yaml_of(folder, model={"max_pixels": 1000})
    (small,) = report(capsys, folder, "--size", "200x200", "--config", cfg)["pictures"]
    assert small["resized"] == [31, 31]
    prompt = family.encode("-", [Image.new("RGB", (31, 31))])
    assert small["tokens"] == family.image_features(prompt.pixels)


MEASURE = """
import resource, sys
from dyme.tools.check.__main__ import main
peaks = [0]
for folder in sys.argv[1:]:
    assert main([folder]) == 0
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print("MiB more:", (peaks[2] - peaks[1]) // 1024)
"""


def test_no_weights_are_read(checkpoint, tmp_path):
    """A file of 2.7 GiB, all holes behind its header, takes no memory."""
    folder = Path(shutil.copytree(checkpoint("llama"), tmp_path / "model"))
    wide = {"intermediate_size": 5_000_000, "num_hidden_layers": 1}
    fields = json.loads((folder / "config.json").read_text()) | wide
    (folder / "config.json").write_text(json.dumps(fields))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    header, at = {}, 0
    for name, p in model.named_parameters():
        header[name] = {"dtype": "F32", "shape": list(p.shape), "data_offsets": [at, at + 4 * p.numel()]}
        at += 4 * p.numel()
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    command = [sys.executable, "-c", MEASURE, str(checkpoint("llama")), str(folder)]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "1 file, 2.68 GiB" in done.stdout
    assert int(done.stdout.split("MiB more: ")[1]) < 200


def test_without_weights(checkpoint, capsys, tmp_path):
    """A configuration alone says all but what the files hold."""
    folder = Path(shutil.copytree(checkpoint("smolvlm-v1"), tmp_path / "model"))
    whole = report(capsys, folder)
    (folder / "model.safetensors").unlink()
    status, out, err = run(capsys, folder, "--json")
    assert status == 1 and err == f"not usable: {folder} has no weights: copy its safetensors files\n"
    left = json.loads(out)
    assert {k for k in whole if left[k] != whole[k]} == {"files", "dtypes", "missing"}
    assert "  weights        missing\n" in run(capsys, folder)[1]


def test_tensors_that_are_not_used(checkpoint, capsys, tmp_path):
    """A configuration with fewer layers than the file: transformers would drop the rest without a word."""
    folder = Path(shutil.copytree(checkpoint("llama"), tmp_path / "model"))
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 2}))
    assert len(report(capsys, folder)["unused"]) == 9
    assert "; 9 tensors are not used, first model.layers.2." in run(capsys, folder)[1]


def test_what_is_not_usable(checkpoint, capsys, tmp_path, yaml_of):
    folder = checkpoint("llama")
    (broken := tmp_path / "broken.png").write_bytes(b"x")
    cases = [
        ((tmp_path / "none",), "config.json does not exist"),
        ((folder, "--config", tmp_path / "none.yaml"), "no such configuration file"),
        ((folder, "--config", yaml_of(folder, zero={"stage": 0})), "needs zero_optimization.stage 1, 2 or 3"),
        ((folder, "--config", yaml_of(folder, deepspeed="none.json")), "deepspeed: none.json does not exist"),
        ((folder, "--config", yaml_of(folder, model={"family": "idefics3"})), "is of family 'causal_lm'"),
        ((folder, "--image", broken), f"--image {broken}: cannot be read as a picture"),
    ]
    for arguments, text in cases:
        status, out, err = run(capsys, *arguments)
        assert status == 1 and out == "" and err.count("\n") == 1, err
        assert err.startswith("not usable: ") and text in err
    for wrong in (["--size", "600"], ["--gpus", "0"], ["--size", "0x5"]):
        with pytest.raises(SystemExit):
            main([str(folder), *wrong])
    capsys.readouterr()


def test_a_processor_that_does_not_fit(checkpoint, capsys, tmp_path):
    folder = Path(shutil.copytree(checkpoint("smolvlm-v1"), tmp_path / "model"))
    fields = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps(fields | {"image_seq_len": 9}))
    status, _, err = run(capsys, folder)
    assert (
        status == 1 and err.count("\n") == 1 and err.startswith(f"not usable: {folder}: 45 image placeholder tokens ")
    )
    assert "do not fit config.json" in err


def test_a_picture_that_a_processor_refuses(checkpoint, capsys):
    status, _, err = run(capsys, checkpoint("qwen2.5-vl"), "--size", "5000x3")
    assert status == 1 and err.count("\n") == 1 and "a picture of 5000x3: ValueError: absolute aspect ratio" in err


def test_as_a_program(checkpoint):
    command = [sys.executable, "-m", "dyme.tools.check", str(checkpoint("llama")), "--gpus", "2"]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.startswith(f"{checkpoint('llama')}: llama, family causal_lm\n") and "ZeRO-3, 2 GPUs" in done.stdout
    )


# --- the estimate ----------


@pytest.mark.dist
@pytest.mark.parametrize(("ranks", "dtype"), [(1, "bf16"), (2, "bf16"), (2, "fp32")])
def test_what_stays_is_what_an_engine_holds(run_ranks, tmp_path, ranks, dtype):
    run_ranks(ranks, "held", tmp_path, dtype)
    value, stage = {"bf16": 2, "fp32": 4}[dtype], 3
    for rank in range(ranks):
        held = json.loads((tmp_path / f"held{rank}.json").read_text())
        total, trained = held["parameters"], held["trained"]
        assert 0 < trained < total
        expected = {
            "weights": mem.weights(total, value, stage, ranks),
            "gradients": mem.gradients(trained, 4, stage, ranks),
            "buckets": mem.buckets(mem.Zero(bucket=1000), value),
            "rollout_copy": mem.rollout_copy(total, value),
            "reference": mem.weights(total, value, 3, ranks),
        }
        for name, size in expected.items():
            assert held[name] == pytest.approx(size, rel=0.01), name
        assert held["master"] + held["moments"] == pytest.approx(mem.optimizer(trained, ranks), rel=0.01)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", *VISION])
def test_activations_are_what_autograd_keeps(checkpoint, name, dtype):
    """Bytes that a forward over packed text keeps for its backward, with and without gradient checkpointing."""
    family, model = load_family(checkpoint(name), dtype=dtype)
    sizes, value = decoder_sizes(family, model), model.dtype.itemsize
    tokens = torch.randint(40, 90, (300,)).tolist()
    batch = pack(family, [(family.encode("What is it? " * 10), [tokens])], frozenset()).to(model.device, model.dtype)
    length = batch.input_ids.numel()
    kept = kept_bytes(family, model.train(), batch)
    expected = mem.activations(sizes, length, value, checkpointing=False)
    expected += mem.attention_mask(length, sizes.layers, value)
    assert 0.75 < expected / kept < 1.25
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layer = mem.activations(sizes, length, value, checkpointing=False) // sizes.layers
    between = mem.activations(sizes, length, value, checkpointing=True) - layer
    assert between == sizes.layers * sizes.hidden * value * length
    assert between < kept_bytes(family, model, batch) < 0.3 * kept


def kept_bytes(family, model, batch) -> int:
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    mask = family.attention_mask(model, batch.layout)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        family.hidden(model, batch.input_ids, mask, batch.position_ids, batch.pixels)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("name", ["llama", *VISION])
def test_the_kv_cache_is_what_generate_keeps(checkpoint, name):
    family, model = load_family(checkpoint(name))
    ids = family.encode("What is it?").input_ids.expand(3, -1)
    with torch.no_grad():
        cache = model.eval()(input_ids=ids, use_cache=True).past_key_values
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    sizes = decoder_sizes(family, model)
    counted = mem.kv_cache(sizes, *ids.shape, 4)
    # transformers keeps a token less than the window
    assert counted - held == 2 * 4 * sizes.key_value * sizes.sliding * len(ids)


def test_settings_of_the_run_count(checkpoint, yaml_of):
    folder = checkpoint("smolvlm-v1")

    def of(ranks: int = 1, **changes: dict) -> mem.Estimate:
        return check(folder, load_config(yaml_of(folder, **changes)), ranks=ranks).estimate

    plain = of()
    total = check(folder).parameters
    assert plain.stays["weights"] == plain.stays["rollout copy"] == 4 * total and "reference policy" not in plain.stays
    assert plain.stays["optimizer"] == 12 * total
    assert of(ranks=4).stays["weights"] == total and of(ranks=4).update["gathered weights"] == 4 * total
    assert of(ranks=4, zero={"stage": 2}).stays["weights"] == 4 * total
    assert of(objective={"beta": 0.1}, ranks=2).stays["reference policy"] == 2 * total
    frozen = of(model={"freeze": ["vision", "connector"]})
    parts = check(folder).parts
    assert frozen.stays["optimizer"] == 12 * (parts["language"] + parts["head"])
    assert frozen.update["vision activations"] * 2 == plain.update["vision activations"]  # one layer of two
    less = of(model={"gradient_checkpointing": True})
    assert less.update["activations"] < plain.update["activations"]
    assert plain.update["attention mask"] == (1 + 4 * 3) * 8192**2  # heads of 12 values: auto is sdpa
    assert of(model={"packed_attention": "sdpa"}).update == plain.update
    assert "attention mask" not in of(model={"packed_attention": "flex_attention"}).update
    assert of(method="sft").rollout == {}
    shared = of(rollout={"batch_size": 8}).rollout["KV cache"]  # 8 rows and 2 prompts; 256 and 32
    longest = check(folder).pictures[0].prompt
    prompt = mem.kv_cache(decoder_sizes(*load_family(folder)), 32, column_bucket(longest), 4)
    assert shared * 32 - plain.rollout["KV cache"] == prompt
    away = of(zero={"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}})
    assert set(away.host) == {"weights", "gradients", "optimizer"} and set(away.stays) == {
        "gradient buckets",
        "rollout copy",
    }
    assert plain.peak == sum(plain.stays.values()) + sum(plain.update.values()) > sum(plain.rollout.values())
    short = of(train={"token_budget": 8})  # a single row is never split
    assert short.update["activations"] * 8192 == plain.update["activations"] * (longest + 256)
    assert of(train={"logits_budget_mb": 300}).peak - plain.peak == 44 * 2**20


def test_adapters(checkpoint):
    """model.lora: their parameters alone are trained, and the model without them is the reference."""
    family, model = load_family(checkpoint("smolvlm-v1"))
    every = adapted_linears(family, model, LoraConfig())
    assert len(every) == 3 * 7
    two = adapted_linears(family, model, LoraConfig(targets=("q_proj", "v_proj")))
    assert two == [(48, 48), (24, 48)] * 3
    with_vision = adapted_linears(family, model, LoraConfig(targets=("q_proj",), vision=True))
    assert len(with_vision) == 3 + 2
    assert mem.adapters(two, 4) == 3 * 4 * (96 + 72)
    add_lora(family, model, LoraConfig(r=4, targets=("q_proj", "v_proj")), seed=0)
    assert sum(p.numel() for n, p in model.named_parameters() if "lora_" in n) == mem.adapters(two, 4)
