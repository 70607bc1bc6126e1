"""Runs the authors' code of AVEL, PSP, RFJC, CMRAN and CMBS on the formulas of `helpers/rivals.py`, stores results.

The code is not part of this repository. Get it into a temporary folder and pass that:

    git clone https://github.com/YapengTian/AVE-ECCV18 CODE/AVEL
    git clone https://github.com/jasongief/PSP_CVPR_2021 CODE/PSP
    git clone https://github.com/tuffr5/Recursive-joint-co-attention CODE/RFJC
    git clone https://github.com/FloretCat/CMRAN CODE/CMRAN
    git clone https://github.com/marmot-xy/CMBS CODE/CMBS
    python -m tests.rivals.make_rival_parity CODE

It calls their networks, in float64 and on the CPU, with weights under our names: `RENAMED` translates the names. It
writes `parity.json`; `test_rival_parity.py` compares.
"""

import importlib.util
import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from tests.helpers.rivals import EVENT_CLASSES, NUM_CLASSES, parity_features, parity_labels, pseudo_weight

OUTPUT = Path(__file__).with_name("parity.json")
BACKGROUND = NUM_CLASSES - 1
# Beginnings of the authors' names and ours, by network. Parameters that match none are not used by the network.
AVEL_NAMES = {
    "lstm_audio": "audio_lstm.lstm",
    "lstm_video": "video_lstm.lstm",
    "affine_audio": "attention.audio_projection",
    "affine_video": "attention.visual_projection",
    "affine_v": "attention.visual_score",
    "affine_g": "attention.audio_score",
    "affine_h": "attention.score",
}
PSP_NAMES = {
    **{f"attention.{theirs}": ours for theirs, ours in AVEL_NAMES.items()},
    "lstm_a_v.lstm_audio": "audio_lstm.lstm",
    "lstm_a_v.lstm_video": "video_lstm.lstm",
    "psp.v_L1": "propagation.video_key",
    "psp.v_L2": "propagation.video_query",
    "psp.a_L1": "propagation.audio_key",
    "psp.a_L2": "propagation.audio_query",
    "psp.v_fc": "propagation.video_output",
    "psp.a_fc": "propagation.audio_output",
    "psp.layer_norm": "propagation.norm",
    "L1": "hidden",
    "L2": "classifier",
}
RFJC_NAMES = {
    "video_attn.attn.affine_audio": "attention.audio_projection",
    "video_attn.attn.affine_video": "attention.visual_projection",
    "video_attn.attn.affine_v": "attention.visual_score",
    "video_attn.attn.affine_g": "attention.audio_score",
    "video_attn.attn.affine_h": "attention.score",
    "video_attn.attn.affine_feat": "visual_projection",
    "predict.predict.0": "hidden",
    "predict.predict.3": "classifier",
}
for theirs, ours in (("audio_extract", "audio"), ("video_extract", "video"), ("predict.Joint", "joint")):
    RFJC_NAMES |= {
        f"{theirs}.rnn": f"{ours}_lstm.lstm",
        f"{theirs}.linear": f"{ours}_lstm.projection",
        f"{theirs}.init_hidden": f"{ours}_lstm.initial_states",
    }
for unit in range(4):
    layer, ours = f"coattn.dcn_layers.{unit}", f"units.{unit}"
    RFJC_NAMES |= {
        f"{layer}.dense_coattn.query_linear": f"{ours}.query",
        f"{layer}.dense_coattn.key1_linear": f"{ours}.video_key",
        f"{layer}.dense_coattn.key2_linear": f"{ours}.audio_key",
        f"{layer}.dense_coattn.value1_linear": f"{ours}.video_value",
        f"{layer}.dense_coattn.value2_linear": f"{ours}.audio_value",
        f"{layer}.linears.0.0": f"{ours}.video_output",
        f"{layer}.linears.1.0": f"{ours}.audio_output",
    }
GUIDED_NAMES = {
    "affine_video_1": "channel_visual",
    "affine_audio_1": "channel_audio",
    "affine_video_2": "location_visual",
    "affine_bottleneck": "channel_bottleneck",
    "affine_v_c_att": "channel_score",
    "affine_audio_2": "location_audio",
    "affine_v_s_att": "location_score",
}
RELATION_NAMES = {"v_fc": "visual_projection"}
for modality in ("video", "audio"):
    RELATION_NAMES |= {
        f"{modality}_encoder.affine_matrix": f"{modality}_internal.projection",
        f"{modality}_encoder.encoder.layers": f"{modality}_internal.layers",
        f"{modality}_decoder.affine_matrix": f"{modality}_cross.projection",
        f"{modality}_decoder.decoder.layers.0.multihead_attn": f"{modality}_cross.attention",
        f"{modality}_decoder.decoder.layers.0.linear1": f"{modality}_cross.feedforward.0",
        f"{modality}_decoder.decoder.layers.0.linear2": f"{modality}_cross.feedforward.3",
        f"{modality}_decoder.decoder.layers.0.norm1": f"{modality}_cross.attention_norm",
        f"{modality}_decoder.decoder.layers.0.norm2": f"{modality}_cross.feedforward_norm",
    }
CMRAN_NAMES = {
    **{f"spatial_channel_att.{theirs}": f"attention.{ours}" for theirs, ours in GUIDED_NAMES.items()},
    **RELATION_NAMES,
    "AVInter.video_multihead": "interaction.attention",
    "AVInter.norm1": "interaction.norm",
    "localize_module.classifier": "event_score",
    "localize_module.event_classifier": "classifier",
}
CMBS_ATTENTION = {
    "video_query": "query",
    "video_key": "key",
    "video_value": "value",
    "norm": "norm",
    "affine_video_ave": "mean_projection",
    "affine_video_3": "location_projection",
    "ave_v_att": "location_score",
}
CMBS_NAMES = {
    **{f"spatial_channel_att.{theirs}": f"attention.guided.{ours}" for theirs, ours in GUIDED_NAMES.items()},
    **{f"spatial_channel_att.{theirs}": f"attention.{ours}" for theirs, ours in CMBS_ATTENTION.items()},
    **RELATION_NAMES,
    "audio_visual_rnn_layer.audio_rnn": "audio_lstm.lstm",
    "audio_gated.0": "audio_gate",
    "audio_visual_rnn_layer.visual_rnn": "video_lstm.lstm",
    "video_gated.0": "video_gate",
    "AVInter.video_multihead": "video_interaction.attention",
    "AVInter.norm1": "video_interaction.norm",
    "VAInter.video_multihead": "audio_interaction.attention",
    "VAInter.norm1": "audio_interaction.norm",
    "audio_cas": "audio_classes",
    "video_cas": "video_classes",
    "localize_module.classifier": "event_score",
    "localize_module.event_classifier": "classifier",
}
RENAMED = {
    "avel-att-full": {**AVEL_NAMES, "L1": "hidden", "L2": "classifier"},
    "avel-att-weak": {**AVEL_NAMES, "L1": "hidden", "L2": "classifier"},
    "avel-full": {**AVEL_NAMES, "U_v": "video_update", "U_a": "audio_update", "L2": "classifier"},
    "psp-full": {**PSP_NAMES, "fa": "audio_projection", "fv": "video_projection"},
    "psp-weak": {**PSP_NAMES, "linear_v": "video_projection", "W3": "segment_weight"},
    "rfjc-full": RFJC_NAMES,
    "cmran-full": CMRAN_NAMES,
    "cmran-weak": CMRAN_NAMES,
    "cmbs-full": CMBS_NAMES,
    "cmbs-weak": {**CMBS_NAMES, "CAS_model.classifier.0": "classifier"},
}


def give_weights(network: nn.Module, renamed: dict[str, str]) -> nn.Module:
    """Sets the weights that have a name of ours to those of the formula."""
    for name, parameter in network.named_parameters():
        starts = [start for start in renamed if f"{name}.".startswith(f"{start}.")]
        if starts:
            start = max(starts, key=len)
            value = pseudo_weight(renamed[start] + name.removeprefix(start), squeezed(parameter.shape))
            parameter.data.copy_(value.view(parameter.shape))
    return network.eval()


def build(name: str, network: type[nn.Module], *arguments) -> nn.Module:
    """One of the authors' networks with our weights."""
    return give_weights(network(*arguments), RENAMED[name])


def keep_output(kept: list, _module: nn.Module, _inputs: tuple, output: torch.Tensor) -> None:
    """A forward hook that appends the output to a list."""
    kept.append(output)


def squeezed(shape: torch.Size) -> tuple[int, ...]:
    """The shape of a linear layer's weight, also for a convolution of width 1."""
    return tuple(shape[:2]) if len(shape) == 3 else tuple(shape)


def load(path: Path, name: str, package: bool = False):
    """Imports a file of the authors' under another name."""
    options = {"submodule_search_locations": [str(path.parent)]} if package else {}
    spec = importlib.util.spec_from_file_location(name, path, **options)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Truth:
    """Features and labels of the clips, in the forms that the authors' losses take."""

    image: torch.Tensor
    audio: torch.Tensor
    labels: torch.Tensor

    @property
    def flags(self) -> torch.Tensor:
        return nn.functional.one_hot(self.labels, NUM_CLASSES).double()

    @property
    def is_event(self) -> torch.Tensor:
        return (self.labels != BACKGROUND).double()

    @property
    def video(self) -> torch.Tensor:
        return torch.tensor(EVENT_CLASSES)

    @property
    def video_flags(self) -> torch.Tensor:
        return nn.functional.one_hot(self.video, NUM_CLASSES).double()


Results = dict[str, dict[str, torch.Tensor]]
soft_margin, binary, cross = nn.MultiLabelSoftMarginLoss(), nn.BCEWithLogitsLoss(), nn.CrossEntropyLoss()


def run_avel(code: Path, truth: Truth) -> Results:
    found = {}
    for name, file, network, options in (
        ("avel-att-full", "models", "att_Net", ()),
        ("avel-full", "models_fusion", "TBMRF_Net", (1,)),
    ):
        module = load(code / f"{file}.py", f"avel_{file}")
        net = build(name, getattr(module, network), 128, 128, 512, NUM_CLASSES, *options)
        inputs_of_softmax = []  # they return its output
        net.L2.register_forward_hook(partial(keep_output, inputs_of_softmax))
        loss = soft_margin(net(truth.audio, truth.image), truth.flags)
        found[name] = {"logits": inputs_of_softmax[0], "loss": loss}
    module = load(code / "models_weakly.py", "avel_weak")
    net = build("avel-att-weak", module.att_Net, 128, 128, 512, NUM_CLASSES)
    probabilities, logits = net(truth.audio, truth.image)
    return {**found, "avel-att-weak": {"logits": logits, "loss": soft_margin(probabilities, truth.video_flags)}}


def run_psp(code: Path, truth: Truth) -> Results:
    # measure.py also imports a function for the accuracy, which is not needed here.
    sys.modules.setdefault("sklearn.metrics", SimpleNamespace(accuracy_score=None))
    measure = load(code / "measure.py", "psp_measure")
    sizes = (128, 512, 128, NUM_CLASSES)
    full = build("psp-full", load(code / "fully_model.py", "psp_full").psp_net, *sizes)
    _, logits, similarity = full(truth.audio, truth.image, 0.099)
    pairs = measure.AVPSLoss(similarity, truth.is_event / truth.is_event.sum(dim=1, keepdim=True))
    loss = cross(logits.permute(0, 2, 1), truth.labels) + 100 * pairs
    weak = build("psp-weak", load(code / "weakly_model.py", "psp_weak").psp_net, *sizes)
    average, weak_logits = weak(truth.audio, truth.image, 0.095)
    return {
        "psp-full": {"logits": logits, "similarity": similarity, "loss": loss},
        "psp-weak": {"logits": weak_logits, "loss": nn.BCELoss()(average, truth.video_flags)},
    }


def run_rfjc(code: Path, truth: Truth) -> Results:
    sys.path.insert(0, str(code))  # models.py imports its layers by absolute names
    module = load(code / "models.py", "rfjc_models")
    # The defaults of supervised_main.py.
    sizes = {"audio_size": 512, "video_size": 512, "num_classes": NUM_CLASSES}
    options = SimpleNamespace(rnn="LSTM", num_layers=2, num_seq=4, droprnn=0.1, dropout=0.3, **sizes)
    net = build("rfjc-full", module.DCNWithRCNN, options)
    inputs_of_softmax = []  # it returns its output
    net.predict.predict.register_forward_hook(partial(keep_output, inputs_of_softmax))
    loss = soft_margin(net(truth.audio, truth.image), truth.flags)
    return {"rfjc-full": {"logits": inputs_of_softmax[0], "loss": loss}}


def run_cmran(code: Path, truth: Truth) -> Results:
    load(code / "model" / "__init__.py", "cmran", package=True)
    module = load(code / "model" / "main_model.py", "cmran.main_model")
    events, classes = build("cmran-full", module.supv_main_model)(truth.image, truth.audio)
    events = events.squeeze(-1).T
    loss = binary(events, truth.is_event) + cross(classes, truth.video)
    full = {"event_logits": events, "class_logits": classes, "loss": loss}
    events, classes, probabilities = build("cmran-weak", module.weak_main_model)(truth.image, truth.audio)
    loss = soft_margin(probabilities, truth.video_flags)
    return {"cmran-full": full, "cmran-weak": {"event_logits": events, "class_logits": classes, "loss": loss}}


def run_cmbs(code: Path, truth: Truth) -> Results:
    load(code / "model" / "__init__.py", "cmbs", package=True)
    module = load(code / "model" / "main_model.py", "cmbs.main_model")
    settings = {
        name: json.loads((code / "configs" / f"{name}.json").read_text())["model"] for name in ("main", "weak")
    }
    net = build("cmbs-full", module.supv_main_model, settings["main"])
    events, classes, gate, agreement = net(truth.image, truth.audio)
    events, gate = events.squeeze(-1).T, gate.squeeze(-1).T
    loss = binary(events, truth.is_event) + binary(gate, truth.is_event)
    loss = loss + cross(classes, truth.video) + cross(agreement, truth.video)
    full = {"event_logits": events, "class_logits": classes, "gate": gate, "agreement_logits": agreement}
    net = build("cmbs-weak", module.weak_main_model, settings["weak"])
    gate, classes, probabilities = net(truth.image, truth.audio)
    loss_weak = soft_margin(probabilities, truth.video_flags)
    return {
        "cmbs-full": {**full, "loss": loss},
        "cmbs-weak": {"gate": gate, "class_logits": classes, "loss": loss_weak},
    }


def main(code: Path) -> None:
    torch.set_default_dtype(torch.float64)
    torch.Tensor.cuda = nn.Module.cuda = lambda self, *_, **__: self  # their code asks for a GPU everywhere
    truth = Truth(*parity_features(), parity_labels())
    found: Results = {}
    runs = {"AVEL": run_avel, "PSP": run_psp, "RFJC": run_rfjc, "CMRAN": run_cmran, "CMBS": run_cmbs}
    for name, run in runs.items():
        found |= run(code / name, truth)
    content = {}
    for case, outputs in found.items():
        if "logits" in outputs:
            outputs["logits"] = outputs["logits"][:, [0, 4, 9]]  # three segments are enough
        numbers = {name: value.detach().flatten().tolist() for name, value in outputs.items()}
        content[case] = {name: [float(f"{number:.9g}") for number in values] for name, values in numbers.items()}
    lines = [f"{json.dumps(case)}: {json.dumps(outputs)}" for case, outputs in content.items()]
    OUTPUT.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
