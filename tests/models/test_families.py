"""Every family of the table on a tiny random model of its real class, with a head or as a language
model, whole or in 4 bits."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support import tiny

from medray.config.trial import LoraConfig, ModelOptions
from medray.errors import ConfigError
from medray.models import sources
from medray.models.architecture import is_text_part
from medray.models.batch import collate
from medray.models.build import BuiltModel, build, merge_and_export, save
from medray.models.families import FAMILIES
from medray.types import Head

HEAD = Head(("negative", "positive", "unclear"))
NAMES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "distilbert": "DistilBert",
    "llama": "Llama",
    "mistral": "Mistral",
    "phi": "Phi",
    "phi3": "Phi3",
    "opt": "OPT",
    "modernbert": "ModernBert",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "qwen3_5_text": "Qwen3_5Text",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3Text",
    "gemma4_text": "Gemma4Text",
    "smollm3": "SmolLM3",
    "ministral3": "Ministral3",
}
WITHOUT_HEAD = {"gemma4_text"}  # in transformers
CASES = [(family, HEAD) for family in NAMES if family not in WITHOUT_HEAD]
CASES += [(family, None) for family in tiny.DECODERS]
every_case = pytest.mark.parametrize(
    ("family", "head"),
    [
        pytest.param(*case, id=f"{case[0]}-{'head' if case[1] else 'language-model'}")
        for case in CASES
    ],
)
every_quantization = pytest.mark.parametrize("quantization", ["none", "nf4"])
ROWS = [[5, 6, 7, 40], [8, 9], [10, 11, 12, 13, 14, 15], [20, 21, 22]]
LABELS = torch.tensor([0, 1, 2, 1])


def make(
    path: Path,
    head: Head | None,
    *,
    lora: LoraConfig | None = None,
    adapter_dir: Path | None = None,
    **model: Any,
) -> BuiltModel:
    return build(
        sources.resolve(str(path)),
        head,
        ModelOptions(**model),
        lora or LoraConfig(r=4),
        adapter_dir=adapter_dir,
        seed=1,
    )


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.inference_mode():
        return torch.cat([model(input_ids=torch.tensor([row])).logits.flatten() for row in ROWS])


def train(model: BuiltModel, num_steps: int) -> list[float]:
    """Train on one batch several times, and return the losses."""
    inputs = collate(ROWS, model.tokenizer.pad_token_id)
    parameters = [parameter for parameter in model.network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    for step in range(num_steps):
        torch.manual_seed(step)
        model.network.train()
        outputs = model.network(**inputs).logits
        if model.head:
            loss = torch.nn.functional.cross_entropy(outputs, LABELS)
        else:
            is_answer = inputs["attention_mask"][:, 1:].bool()
            loss = torch.nn.functional.cross_entropy(
                outputs[:, :-1][is_answer], inputs["input_ids"][:, 1:][is_answer]
            )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_every_family_of_the_table_is_tested() -> None:
    assert set(NAMES) == set(FAMILIES)


@every_quantization
@every_case
def test_a_family_trains_reloads_and_merges(
    tmp_path: Path, family: str, head: Head | None, quantization: str
) -> None:
    path = tiny.base(tmp_path, family)
    model = make(path, head, quantization=quantization)
    name = NAMES[family] if head else NAMES[family].removesuffix("Text")
    kind = getattr(transformers, f"{name}For{'SequenceClassification' if head else 'CausalLM'}")
    assert type(model.network.get_base_model()) is kind
    losses = train(model, 12)
    assert losses[-1] < 0.7 * losses[0]
    before = logits(model.network)
    save(model, tmp_path / "saved")
    again = make(path, head, quantization=quantization, adapter_dir=tmp_path / "saved")
    assert torch.equal(logits(again.network), before)
    merge_and_export(model, tmp_path / "merged")
    plain = kind.from_pretrained(tmp_path / "merged")
    assert not hasattr(plain.config, "quantization_config")
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.float32}
    torch.testing.assert_close(logits(plain), before, atol=1e-4, rtol=0)


@every_quantization
@pytest.mark.parametrize("family", NAMES)
def test_top_layers_and_targets_choose_what_is_adapted(
    tmp_path: Path, family: str, quantization: str
) -> None:
    path = tiny.base(tmp_path, family)
    target = FAMILIES[family].lora_targets[0]
    head = None if family in WITHOUT_HEAD else HEAD
    model = make(
        path, head, lora=LoraConfig(r=4, targets=(target,), top_layers=1), quantization=quantization
    )
    (name,) = {name for name, _ in model.network.named_modules() if name.endswith(".lora_A")}
    assert name == f"base_model.model.{model.family.layers_path}.1.{name.split('.1.', 1)[1]}"
    assert name.removesuffix(".lora_A").endswith(f".{target}")
    with pytest.raises(ConfigError, match=f"3 is more than the 2 layers of this {family}"):
        make(path, head, lora=LoraConfig(top_layers=3), quantization=quantization)


@every_quantization
@every_case
@pytest.mark.document(
    "003",
    "gradient checkpointing changes memory, not results",
    where="`model.gradient_checkpointing`",
)
def test_gradient_checkpointing_changes_no_gradient(
    tmp_path: Path, family: str, head: Head | None, quantization: str
) -> None:
    path = tiny.base(tmp_path, family)
    gradients: list[dict[str, torch.Tensor]] = []
    for checkpointing in (False, True):
        model = make(
            path,
            head,
            lora=LoraConfig(r=4, dropout=0.0),
            quantization=quantization,
            gradient_checkpointing=checkpointing,
        )
        passes = 0

        def count(*_: Any) -> None:
            nonlocal passes
            passes += 1

        model.network.get_base_model().get_submodule(model.family.layers_path)[
            0
        ].register_forward_pre_hook(count)
        model.network.train()
        torch.nn.init.ones_(
            next(
                parameter
                for name, parameter in model.network.named_parameters()
                if "lora_B" in name
            )
        )
        model.network(input_ids=torch.tensor([[5, 6, 7, 8]])).logits.square().sum().backward()
        assert passes == 1 + checkpointing, "checkpointed layers are computed twice"
        gradients.append(
            {
                name: parameter.grad
                for name, parameter in model.network.named_parameters()
                if parameter.grad is not None
            }
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_head_keeps_out_of_four_bits_and_so_does_all_outside_the_layers(tmp_path: Path) -> None:
    from bitsandbytes.nn import Linear4bit

    for family, head in CASES:
        model = make(tiny.base(tmp_path, family), head, quantization="nf4")
        network = model.network.get_base_model()
        whole = {
            name
            for name, module in network.named_modules()
            if type(module) is torch.nn.Linear and "lora_" not in name
        }
        layers_4bit = {
            name for name, module in network.named_modules() if isinstance(module, Linear4bit)
        }
        assert not any(name.startswith(model.family.layers_path) for name in whole)
        assert layers_4bit
        assert all(name.startswith(f"{model.family.layers_path}.") for name in layers_4bit)
        if head:
            assert all(
                any(name.startswith(module) for name in whole)
                for module in model.family.head_modules
            )


def test_modernbert_as_published_keeps_its_trained_prediction_head(tmp_path: Path) -> None:
    path = tiny.base(tmp_path, "modernbert")
    config = transformers.AutoConfig.from_pretrained(path)
    torch.manual_seed(0)
    masked_lm = transformers.ModernBertForMaskedLM(config)
    masked_lm.save_pretrained(path)
    model = make(path, HEAD)
    assert model.family.head_modules == ("classifier",)
    head = model.network.get_base_model().head
    assert torch.equal(head.dense.weight, masked_lm.head.dense.weight)
    assert not head.dense.weight.requires_grad


WRAPPERS = {
    "gemma3_text": ("Gemma3", {"mm_tokens_per_image": 4}),
    "gemma4_text": ("Gemma4", {}),
    "qwen3_5_text": ("Qwen3_5", {}),
}


@every_quantization
@pytest.mark.parametrize("family", WRAPPERS)
def test_of_a_model_that_also_reads_images_the_language_model_is_taken(
    tmp_path: Path, family: str, quantization: str
) -> None:
    path = tiny.base(tmp_path, family)
    name, options = WRAPPERS[family]
    text = transformers.AutoConfig.from_pretrained(path)
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads = "num_heads" if family.startswith("qwen") else "num_attention_heads"
    config = getattr(transformers, f"{name}Config")(
        text_config=text.to_dict(), vision_config={**vision, heads: 2}, **options
    )
    config.tie_word_embeddings = text.tie_word_embeddings
    whole = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    plain = transformers.AutoModelForCausalLM.from_pretrained(path)
    whole.model.language_model.load_state_dict(plain.model.state_dict())
    whole.lm_head.load_state_dict(plain.lm_head.state_dict())
    reference = logits(make(path, None, quantization=quantization).network)
    whole.save_pretrained(tmp_path / "whole")
    tiny.tokenizer(family).save_pretrained(tmp_path / "whole")
    model = make(tmp_path / "whole", None, quantization=quantization)
    assert model.family.name == family
    assert [is_text_part(folder) for folder in (path, tmp_path / "whole")] == [False, True]
    assert torch.equal(logits(model.network), reference)
    merge_and_export(model, tmp_path / "merged")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(again) is type(plain)
    torch.testing.assert_close(logits(again), reference, atol=1e-4, rtol=0)
