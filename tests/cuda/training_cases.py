"""Trials on the CUDA device in name: the CPU's losses, and everything on one device.

tests/test_cuda.py runs this file in a process of its own."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny
from support.pretend_cuda import Device, DeviceMismatchError

from medray.errors import TrialError
from medray.models import frozen_weights, quantization
from medray.models.build import merge
from medray.models.lora import dropout_mask
from medray.registry import loading
from medray.training.loop import Loop
from medray.training.trial import Trial
from medray.training.trial_folder import TrialResult

KINDS: dict[str, Callable[..., Any]] = {
    "classification": tiny.study,
    "choice": tiny.choice_study,
    "instruct": tiny.instruct_study,
    "decisions": tiny.decision_study,
    "tagging": lambda folder, *settings, **options: tiny.mention_study(
        folder, "{name: tagging, max_length: 64}", *settings, **options
    ),
    "extraction": lambda folder, *settings, **options: tiny.mention_study(
        folder, "{name: extraction, max_length: 96, max_answer: 24}", *settings, **options
    ),
}
ON_CPU = "resources.gpus_per_worker=0"


def make(folder: Path, kind: str, family: str, *settings: str) -> Trial:
    """Return a trial of few rows whose results depend on no random number of the device."""
    shutil.rmtree(folder / "trial", ignore_errors=True)
    study = KINDS[kind](
        folder, "train.epochs=1", "lora.dropout=0.0", *settings, family=family, num_rows=24
    )
    return tiny.trial(study, folder)


def losses(result: TrialResult) -> list[float]:
    return [evaluation.train_loss for evaluation in result.history]


@pytest.mark.parametrize(
    ("kind", "family"),
    [
        ("classification", "bert"),
        ("choice", "llama"),
        ("instruct", "opt"),
        ("decisions", "llama"),
        ("tagging", "roberta"),
        ("classification", "distilbert"),
        ("classification", "electra"),
        ("classification", "mistral"),
        ("extraction", "mistral"),
        ("instruct", "phi"),
        ("choice", "phi3"),
        ("classification", "modernbert"),
        ("classification", "ministral3"),
        ("instruct", "qwen2"),
        ("choice", "qwen3"),
        ("decisions", "qwen3_5_text"),
        ("choice", "gemma2"),
        ("instruct", "gemma3_text"),
        ("choice", "gemma4_text"),
        ("extraction", "smollm3"),
    ],
)
def test_a_trial_has_the_losses_of_a_cpu_and_its_checkpoint_loads_and_merges_on_both(
    tmp_path: Path, kind: str, family: str
) -> None:
    trial_on_cpu = make(tmp_path, kind, family, ON_CPU)
    assert trial_on_cpu.device == "cpu", "a GPU that is not reserved stays free"
    losses_on_cpu = losses(trial_on_cpu.run())
    trial = make(tmp_path, kind, family)
    assert trial.device == "cuda"
    result = trial.run()
    assert losses(result) == pytest.approx(losses_on_cpu, abs=1e-4)
    loading.load(result.checkpoint, device="cpu")  # checks the probe, which the device computed
    release = loading.load(result.checkpoint, device="cuda").merge()
    assert release.model.network.device.type == "cuda"
    release.check_probe()


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("bert", ("model.precision=bf16",)),
        ("llama", ("model.precision=bf16", "model.quantization=nf4")),
        ("llama", ("model.precision=fp16", "model.gradient_checkpointing=true")),
        ("roberta", ("model.precision=bf16", "model.quantization=nf4", "lora.dtype=bf16")),
        ("phi3", ("model.precision=fp32", "model.quantization=nf4")),
    ],
)
def test_in_16_and_4_bits_a_trial_has_nearly_the_losses_of_a_cpu(
    tmp_path: Path, family: str, settings: tuple[str, ...]
) -> None:
    losses_on_cpu = losses(make(tmp_path, "classification", family, *settings, ON_CPU).run())
    result = make(tmp_path, "classification", family, *settings).run()
    assert losses(result) == pytest.approx(losses_on_cpu, abs=0.02)
    loading.load(result.checkpoint, device="cpu")
    loading.load(result.checkpoint, device="cuda").merge()


def test_a_trial_resumes_with_the_losses_of_one_that_was_never_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("train.state_every_steps=1", "lora.dropout=0.1", "train.samples_per_step=4")
    whole = make(tmp_path, "classification", "bert", *settings).run()
    advance = Loop.advance

    def advance_to_the_second_step(loop: Loop) -> None:
        advance(loop)
        if loop.slot.step == 2:
            raise KeyboardInterrupt

    trial = make(tmp_path, "classification", "bert", *settings)
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "advance", advance_to_the_second_step)
        with pytest.raises(KeyboardInterrupt):
            trial.run()
    again = Trial(trial.config, trial.material, trial.folder, lambda report: None)
    assert losses(again.run(resume=True)) == losses(whole)
    assert again.slot.step > 2


def test_out_of_memory_repeats_the_step_with_the_same_losses(tmp_path: Path) -> None:
    whole = make(tmp_path, "classification", "llama").run()
    trial = make(tmp_path, "classification", "llama")
    num_calls = 0

    def run_out(module: Any, inputs: Any, outputs: Any) -> None:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    trial.model.network.base_model.model.model.layers[1].mlp.register_forward_hook(run_out)
    assert losses(trial.run()) == pytest.approx(losses(whole), abs=1e-5)
    assert trial.loop.token_budget < trial.config.train.token_budget


def test_a_tensor_that_stays_on_the_cpu_is_reported(tmp_path: Path) -> None:
    trial = make(tmp_path, "classification", "bert")
    norm = trial.model.network.base_model.model.bert.embeddings.LayerNorm
    norm.weight = torch.nn.Parameter(torch.ones(32), requires_grad=False)
    with pytest.raises(DeviceMismatchError, match=r"cuda:0 and, of shape \(32,\), on the cpu"):
        trial.run()


@pytest.mark.parametrize(
    ("kind", "family", "precision"),
    [
        ("classification", "bert", "bf16"),
        ("choice", "llama", "bf16"),
        ("instruct", "opt", "fp16"),
    ],
)
def test_frozen_weights_that_16_bits_hold_stay_in_them_with_the_same_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, family: str, precision: str
) -> None:
    tiny.round_base(tiny.base(tmp_path, family))
    settings = (f"model.precision={precision}", "train.samples_per_step=4")
    trial = make(tmp_path, kind, family, *settings)
    types = {
        name: parameter.dtype
        for name, parameter in trial.model.network.named_parameters()
        if not parameter.requires_grad
    }
    inside = {name for name in types if ".base_layer.weight" in name and "norm" not in name.lower()}
    assert inside
    # weights of bf16 need not fit into fp16, which has a smaller range
    assert {types[name] for name in inside} <= {torch.bfloat16, torch.float16}
    assert {types[name] for name in types if "norm" in name.lower()} == {torch.float32}
    assert {types[name] for name in types if "embed" in name} == {torch.float32}
    result = trial.run()
    loading.load(result.checkpoint, device="cpu")  # the probe is that of the base in fp32
    monkeypatch.setattr(
        frozen_weights, "move", lambda network, device, precision, **_: network.to(device)
    )
    assert losses(make(tmp_path, kind, family, *settings).run()) == losses(result)


def test_a_base_model_before_training_lies_in_16_bits_too(tmp_path: Path) -> None:
    tiny.round_base(tiny.base(tmp_path, "llama"))
    config = make(tmp_path, "choice", "llama", "model.precision=auto").config
    engines = [loading.base_model_engine(config, device=device) for device in ("cpu", "cuda")]
    assert [engine.precision for engine in engines] == ["fp32", "bf16"]
    layer = engines[1].network.model.layers[0].mlp.up_proj
    assert layer.weight.dtype == torch.bfloat16
    on_cpu, on_device = (engine.score([[5, 6, 7]], [[8, 9]]) for engine in engines)
    assert on_device == pytest.approx(on_cpu, abs=0.05)


def test_weights_that_16_bits_do_not_hold_stay_in_fp32(tmp_path: Path) -> None:
    trial = make(tmp_path, "classification", "bert", "model.precision=bf16")
    types = {parameter.dtype for parameter in trial.model.network.parameters()}
    assert types == {torch.float32}


def test_the_backward_pass_unpacks_4_bits_in_the_precision_of_the_training(tmp_path: Path) -> None:
    settings = ("model.precision=bf16", "model.quantization=nf4")
    trial = make(tmp_path, "classification", "llama", *settings)
    layers = quantization.layers_4bit(trial.model.network).values()
    assert {layer.weight.quant_state.dtype for layer in layers} == {torch.bfloat16}
    exact = merge(trial.model).network  # from fp32 all the same
    on_cpu = merge(make(tmp_path, "classification", "llama", *settings, ON_CPU).model).network
    for name, weight in exact.named_parameters():
        assert torch.equal(weight.cpu(), on_cpu.get_parameter(name)), name


def test_an_adapter_of_a_layer_in_4_bits_computes_as_pefts_with_fewer_kernels(
    tmp_path: Path, gpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("model.precision=bf16", "model.quantization=nf4")
    network = make(tmp_path, "classification", "llama", *settings).model.network
    layer = network.base_model.model.model.layers[0].mlp.down_proj
    torch.manual_seed(0)
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    values = torch.randn(4, layer.in_features)
    results, kernels = [], []
    for devices in (("cuda",), ()):  # without a device, the layer computes as PEFT's
        monkeypatch.setattr(type(layer), "devices", devices)
        inputs = values.to("cuda").requires_grad_()
        gpu.kernels.clear()
        with torch.autocast("cuda", torch.bfloat16):
            outputs = layer(inputs)
        outputs.float().sum().backward()
        kernels.append(gpu.kernels.total())
        gradients = [layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad]
        results.append([each.cpu().float() for each in (outputs, inputs.grad, *gradients)])
        network.zero_grad(set_to_none=True)
    assert kernels[0] < kernels[1]
    for one, other in zip(*results, strict=True):
        scale = float(other.detach().abs().max())
        torch.testing.assert_close(one, other, atol=0.02 * scale, rtol=0.02)


def test_the_dropout_of_an_adapter_leaves_out_its_share(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mask = dropout_mask(torch.ones(400, 300, device="cuda", dtype=torch.bfloat16), 0.25)
    assert (mask.dtype, mask.device.type) == (torch.bool, "cuda")
    assert float(mask.float().mean()) == pytest.approx(0.75, abs=0.01)


def test_training_alone_uses_tf32_and_the_optimizer_takes_one_kernel_per_group(
    tmp_path: Path, gpu: Device
) -> None:
    trial = make(tmp_path, "classification", "bert", "train.max_steps=2", "train.epochs=null")
    settings: set[tuple[bool, str]] = set()

    def note(module: Any, inputs: Any, outputs: Any) -> None:
        settings.add((module.training, torch.get_float32_matmul_precision()))

    trial.model.network.base_model.model.bert.pooler.register_forward_hook(note)
    trial.run()
    assert settings == {(True, "high"), (False, "highest")}
    num_groups = len(trial.slot.optimizer.param_groups)
    assert gpu.kernels["aten::_fused_adamw_"] == 2 * num_groups


@pytest.mark.parametrize(
    ("precision", "capability", "advice"),
    [("fp16", (9, 0), "bf16"), ("fp16", (7, 5), "fp32"), ("bf16", (9, 0), "fp32")],
)
def test_a_loss_that_is_no_number_names_a_precision_of_wider_range(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    capability: tuple[int, int],
    advice: str,
) -> None:
    trial = make(tmp_path, "classification", "bert", f"model.precision={precision}")
    loss = Loop.loss
    monkeypatch.setattr(Loop, "loss", lambda self, batch: loss(self, batch) * torch.nan)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    with pytest.raises(TrialError, match=f"lower .*, or set model.precision: {advice}$"):
        trial.run()


# Operations and waits of one micro-batch, forward and backward, as they are now. A test allows 5%
# more: a regression is seen, and a version of a library may differ a little.
KERNELS = {
    "bert": 246.0,
    "roberta": 258.0,
    "distilbert": 247.0,
    "electra": 250.0,
    "llama": 441.5,
    "mistral": 444.0,
    "phi": 352.5,
    "phi3": 381.5,
    "opt": 248.25,
    "llama bf16": 581.5,
    "llama nf4": 611.5,
}
WAITS = {
    **dict.fromkeys(("bert", "roberta", "distilbert", "electra"), 2.2),
    **dict.fromkeys(("llama", "mistral", "phi", "phi3", "llama bf16", "llama nf4"), 2.75),
    "opt": 5.125,
}
MARGIN = 1.05


@pytest.mark.parametrize(
    ("family", "kind"), [(case.partition(" ")[0], case.partition(" ")[2]) for case in KERNELS]
)
def test_a_micro_batch_launches_few_kernels_and_rarely_makes_the_host_wait(
    tmp_path: Path, gpu: Device, family: str, kind: str
) -> None:
    case = f"{family} {kind}".strip()
    settings = ["train.samples_per_step=8", "train.token_budget=32"]
    if kind:
        tiny.round_base(tiny.base(tmp_path, family))
        settings.append("model.precision=bf16")
    if kind == "nf4":
        settings.append("model.quantization=nf4")
    task = "instruct" if family == "opt" else "classification"
    trial = make(tmp_path, task, family, *settings)
    loop = trial.make_loop()
    if kind:
        loop.precision = "bf16"
    step = loop.steps()[0]
    assert len(step.ranks[0]) > 2
    loop.accumulate(step, step.ranks[0])  # creates what later steps use
    gpu.kernels, gpu.syncs = Counter(), Counter()
    loop.accumulate(step, step.ranks[0])
    num_batches = len(step.ranks[0])
    assert gpu.kernels.total() / num_batches <= MARGIN * KERNELS[case], gpu.kernels.most_common(20)
    assert gpu.syncs.total() / num_batches <= MARGIN * WAITS[case], gpu.syncs
    assert np.isfinite(loop.accumulate(step, step.ranks[0]))
