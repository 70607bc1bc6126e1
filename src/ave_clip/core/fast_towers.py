"""Folded copies of the towers of AudioCLIP and ave-clip-mini for fast inference, and how it is turned on and off.

Each class here mirrors a part of modeling_clip_resnet.py, modeling_esresnext.py, modeling_efficientnet_lite.py or
transformers' MobileNetV1, which do not need this file. The parts that are copied are typed `Any`: importing their
classes would be circular.

Shapes: B batch, P positions, H channels of the last feature map, D size of the embeddings, S samples, N frames,
K frequency bins.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .configuration_audioclip import AudioCLIPAudioConfig
from .cuda_graphs import GraphedCalls
from .fast_inference import (
    TERMS_AT_ONCE,
    BlockedLinear,
    FastLinear,
    FastPath,
    FoldedConvolution,
    FoldedSameConvolution,
    InferenceOptions,
    convolution_dtype,
    few_at_a_time,
    has_fused_convolutions,
    inference_dtype,
)
from .fast_path import HasFastPath


class FoldedBottleneck(nn.Module):
    """Folded convolutions of a bottleneck of either tower."""

    def __init__(self, block: Any, dtype: torch.dtype, fused: bool) -> None:
        super().__init__()
        self.conv1 = FoldedConvolution(block.conv1, block.bn1, dtype, fused)
        self.conv2 = FoldedConvolution(block.conv2, block.bn2, dtype, fused)
        self.conv3 = FoldedConvolution(block.conv3, block.bn3, dtype, fused)
        self.downsample = None
        if block.downsample is not None:
            self.downsample = FoldedConvolution(block.downsample[0], block.downsample[1], dtype, fused)


class FoldedVisionBottleneck(FoldedBottleneck):
    """[`AudioCLIPVisionBottleneck`] for inference. Overwrites its input if the input is the shortcut."""

    def __init__(self, block: Any, dtype: torch.dtype, fused: bool) -> None:
        super().__init__(block, dtype, fused)
        self.avgpool = block.avgpool

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        shortcut = hidden_states if self.downsample is None else self.downsample(self.avgpool(hidden_states))
        hidden_states = self.conv2(self.conv1(hidden_states, "relu"), "relu")
        return self.conv3.add_relu(self.avgpool(hidden_states), shortcut)


class FoldedAttentionPool(nn.Module):
    """[`AudioCLIPAttentionPool`] for inference, with the matrix products in the cheapest order.

    There is one query, so the key projection is applied to the query instead of every position, and the value
    projection to the weighted mean of the positions: 3 % of the multiplications. The bias of the key adds the same
    value to every score and is omitted. For dense embeddings the value and output projections are merged.
    """

    def __init__(self, pool: Any, dtype: torch.dtype) -> None:
        super().__init__()
        for layer in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
            if type(layer) is not nn.Linear:
                raise ValueError(
                    f"optimize_for_inference takes nn.Linear in the attention pool, got {type(layer).__name__}. Merge "
                    "adapters into the model first, or leave this model as it is."
                )
        copies = {name: parameter.detach().to(dtype) for name, parameter in pool.named_parameters()}
        heads = (pool.num_heads, pool.head_dim, -1)
        self.num_heads, self.scaling = pool.num_heads, pool.scaling
        self.position = nn.Buffer(copies["positional_embedding"])
        self.query, self.query_bias = nn.Buffer(copies["q_proj.weight"]), nn.Buffer(copies["q_proj.bias"])
        self.key = nn.Buffer(copies["k_proj.weight"].view(heads))  # (heads, head_dim, H)
        self.value = nn.Buffer(copies["v_proj.weight"].view(heads))
        self.value_bias = nn.Buffer(copies["v_proj.bias"])
        self.output, self.output_bias = nn.Buffer(copies["c_proj.weight"]), nn.Buffer(copies["c_proj.bias"])
        value, output = (layer.weight.detach().to("cpu", torch.float64) for layer in (pool.v_proj, pool.c_proj))
        bias = output @ pool.v_proj.bias.detach().to(output) + pool.c_proj.bias.detach().to(output)
        self.both = nn.Buffer((output @ value).to(self.value))  # (D, H)
        self.both_bias = nn.Buffer(bias.to(self.value))

    def dense(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Embeds each position separately: `(B, H, h, w)` to `(B, P, D)`."""
        tokens = feature_map.flatten(2).transpose(1, 2) + self.position[1:]
        return nn.functional.linear(tokens, self.both, self.both_bias)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Embeds the whole map: `(B, H, h, w)` to `(B, D)`."""
        tokens = feature_map.flatten(2).transpose(1, 2)  # (B, P, H)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + self.position  # (B, 1 + P, H)
        query = nn.functional.linear(tokens[:, 0], self.query, self.query_bias) * self.scaling
        query = query.unflatten(-1, (self.num_heads, -1)).transpose(0, 1)  # (heads, B, head_dim)
        directions = torch.bmm(query, self.key).transpose(0, 1)  # (B, heads, H)
        weights = torch.bmm(directions, tokens.transpose(1, 2))  # (B, heads, 1 + P)
        weights = weights.softmax(dim=-1, dtype=torch.promote_types(weights.dtype, torch.float32)).to(tokens.dtype)
        means = torch.bmm(weights, tokens).transpose(0, 1)  # (heads, B, H)
        values = torch.bmm(means, self.value.transpose(1, 2)).transpose(0, 1).flatten(1) + self.value_bias  # (B, H)
        return nn.functional.linear(values, self.output, self.output_bias)


class FoldedVisionTower(nn.Module):
    """The copy that [`AudioCLIPVisionModel`] runs after `optimize_for_inference`."""

    def __init__(self, model: Any, dtype: torch.dtype, fused: bool) -> None:
        super().__init__()
        self.dtype, self.output_dtype = dtype, model.conv1.weight.dtype
        stem = ((model.conv1, model.bn1), (model.conv2, model.bn2), (model.conv3, model.bn3))
        self.stem = nn.ModuleList(FoldedConvolution(*pair, dtype, fused) for pair in stem)
        self.avgpool = model.avgpool
        blocks = (*model.layer1, *model.layer2, *model.layer3, *model.layer4)
        self.blocks = nn.Sequential(*(FoldedVisionBottleneck(block, dtype, fused) for block in blocks))
        self.attnpool = FoldedAttentionPool(model.attnpool, dtype)

    def compile_convolutions(self) -> None:
        """Compiles everything up to the last feature map."""
        self.feature_map = torch.compile(self.feature_map, options={"freezing": True})

    def record_convolutions(self) -> None:
        """Runs small batches up to the last feature map as CUDA graphs."""
        recorded: Any = GraphedCalls(self.feature_map)
        self.feature_map = recorded

    def feature_map(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Returns the last feature map of images `(B, 3, side, side)`."""
        hidden_states = pixel_values.to(self.dtype).contiguous(memory_format=torch.channels_last)
        for convolution in self.stem:
            hidden_states = convolution(hidden_states, "relu")
        return self.blocks(self.avgpool(hidden_states))

    def forward(self, pixel_values: torch.Tensor, feature_types: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Returns each of `feature_types` for images `(B, 3, side, side)`."""
        feature_map = torch.cat([self.feature_map(part) for part in few_at_a_time(pixel_values, self.dtype)])
        ways = {"pooled": self.attnpool, "dense": self.attnpool.dense, "layer4": nn.Identity()}
        return {name: ways[name](feature_map).to(self.output_dtype) for name in feature_types}


class FoldedSpectrogram:
    """The spectrogram with its filters in oneDNN's layout; results equal [`AudioCLIPSpectrogram`]'s up to rounding.

    Where the fused kernels are not available (on GPUs, in float64), the original spectrogram is used.
    """

    def __init__(self, spectrogram: Any) -> None:
        self.spectrogram = spectrogram
        self.filters = None
        if has_fused_convolutions(spectrogram.m.device, spectrogram.m.dtype):
            self._lay_out(spectrogram.config)

    def _lay_out(self, config: AudioCLIPAudioConfig) -> None:
        kernel = self.spectrogram.kernel(torch.float32).detach()
        start = (config.n_fft - config.win_length) // 2  # where the samples of a padded frame start
        self.loss = self.spectrogram.filter_loss(kernel)
        self.filters = BlockedLinear(kernel.flatten(0, 1), start, start + config.win_length)
        self.before, self.after = start - self.filters.start, self.filters.end - start - config.win_length
        window = nn.functional.pad(self.spectrogram.window.float(), (self.before, self.after))
        self.window = window.view(-1, 1, 1, TERMS_AT_ONCE)  # (runs, 1, 1, terms)

    def __call__(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns image and filter loss of a waveform `(B, S)`."""
        if self.filters is None or waveform.dtype != torch.float32:
            return self.spectrogram(waveform)
        samples = self.spectrogram.padded(waveform, self.before, self.after)
        frames = samples.unfold(-1, self.window.numel(), self.spectrogram.config.hop_length)
        frames = frames.unflatten(-1, (-1, TERMS_AT_ONCE)).permute(2, 0, 1, 3)  # (runs, B, N, terms)
        runs = torch.mul(frames, self.window, out=frames.new_empty(frames.shape))
        spectrum = self.filters(runs.flatten(1, 2)).unflatten(0, runs.shape[1:3])  # (B, N, 2 * K)
        return self.spectrogram.decibels(spectrum), self.loss


class FoldedAudioBottleneck(FoldedBottleneck):
    """[`AudioCLIPAudioBottleneck`] for inference. Overwrites its input if the input is the shortcut."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        shortcut = hidden_states if self.downsample is None else self.downsample(hidden_states)
        hidden_states = self.conv2(self.conv1(hidden_states, "relu"), "relu")
        return self.conv3.add_relu(hidden_states, shortcut)


class FoldedAudioGate(nn.Module):
    """[`AudioCLIPAudioGate.gate`] for inference."""

    def __init__(self, gate: Any, dtype: torch.dtype, fused: bool) -> None:
        super().__init__()
        self.conv_depth = FoldedConvolution(gate.conv_depth, None, dtype, fused)
        self.conv_point = FoldedConvolution(gate.conv_point, gate.bn, dtype, fused)

    def forward(self, stage_input: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        if stage_input.shape[-2:] != size:
            stage_input = nn.functional.adaptive_max_pool2d(stage_input, size)
        return self.conv_point(self.conv_depth(stage_input), "sigmoid")


class FoldedAudioTrunk(nn.Module):
    """All layers between spectrogram and last projection, for inference."""

    def __init__(self, model: Any, dtype: torch.dtype, fused: bool) -> None:
        super().__init__()
        self.dtype = dtype
        # The first layers see decibels down to -100, which a half type rounds coarsely before the normalization has
        # centred them. In bfloat16 with random weights the least cosine to float32 is 0.9986 if all layers are in
        # bfloat16, 0.9994 with the first convolution in float32, and 0.9997 with the first stage as well.
        self.first_dtype = torch.promote_types(dtype, torch.float32)
        is_fused = fused and (dtype == self.first_dtype or has_fused_convolutions(model.device, self.first_dtype))
        self.stem = FoldedConvolution(model.conv1, model.bn1, self.first_dtype, is_fused)
        stages = (model.layer1, model.layer2, model.layer3, model.layer4)
        gates = (model.att1, model.att2, model.att3, model.att4, model.att5)
        kinds = [(self.first_dtype, is_fused)] + 4 * [(dtype, fused)]
        self.stages = nn.ModuleList(
            nn.Sequential(*(FoldedAudioBottleneck(block, *kind) for block in stage))
            for stage, kind in zip(stages, kinds)
        )
        self.gates = nn.ModuleList(FoldedAudioGate(gate, *kind) for gate, kind in zip(gates, kinds))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps the image `(B, 3, rows, N)` to the pooled vectors `(B, H)` and the last feature map."""
        image = image.to(self.first_dtype).contiguous(memory_format=torch.channels_last)
        stage_input = nn.functional.max_pool2d(self.stem(image, "relu"), 3, stride=2, padding=1)
        for stage, gate in zip(self.stages, self.gates):
            # The gate needs the input, which stays unchanged: the first block of each stage projects its shortcut.
            output = stage(stage_input)
            stage_input = output.mul_(gate(stage_input, output.shape[-2:])).to(self.dtype)
        pooled = stage_input.mean(dim=(2, 3), keepdim=True) * self.gates[-1](stage_input, (1, 1))
        return pooled.flatten(1), stage_input


class FoldedAudioTower(nn.Module):
    """The copy that [`AudioCLIPAudioModel`] runs after `optimize_for_inference`."""

    def __init__(self, model: Any, dtype: torch.dtype, fused: bool) -> None:
        super().__init__()
        self.spectrogram = FoldedSpectrogram(model.fbsp)
        self.trunk = FoldedAudioTrunk(model, dtype, fused)

    def compile_convolutions(self) -> None:
        """Compiles everything except the spectrogram, whose sums must not be reordered."""
        self.trunk.compile(options={"freezing": True})

    def record_convolutions(self) -> None:
        """Runs small batches of everything except the spectrogram as CUDA graphs."""
        recorded: Any = GraphedCalls(self.trunk.forward)
        self.trunk.forward = recorded

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns pooled vectors `(B, H)`, last feature map and filter loss of a waveform `(B, S)`."""
        parts = []
        for part in few_at_a_time(waveform, self.trunk.dtype):
            image, loss = self.spectrogram(part)
            parts.append(self.trunk(image))
        pooled, feature_map = (torch.cat(results) for results in zip(*parts))
        return pooled, feature_map, loss


ACTIVATIONS = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Identity: "none", type(None): "none"}


class FoldedMobileLayer(nn.Module):
    """[`EfficientNetLiteConvolution`], or a layer of transformers' MobileNetV1, for inference."""

    def __init__(self, layer: Any, dtype: torch.dtype, fused: bool, pads: bool = True) -> None:
        super().__init__()
        if type(layer.activation) not in ACTIVATIONS:
            raise ValueError(
                f"optimize_for_inference takes ReLU and ReLU6 here, got {type(layer.activation).__name__}. Leave this "
                "model as it is."
            )
        self.activation = ACTIVATIONS[type(layer.activation)]
        # Most layers need no padding at all. They would only keep their weights twice.
        is_point = {*layer.convolution.kernel_size, *layer.convolution.stride} == {1}
        kind = FoldedSameConvolution if pads and not is_point else FoldedConvolution
        self.convolution = kind(layer.convolution, layer.normalization, dtype, fused)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.convolution(hidden_states, self.activation)


class FoldedMobileBlock(nn.Module):
    """[`EfficientNetLiteBlock`] for inference. Overwrites its input if the input is the shortcut."""

    def __init__(self, block: Any, dtype: torch.dtype, fused: bool) -> None:
        super().__init__()
        layers = [layer for layer in (block.expand, block.depthwise) if not isinstance(layer, nn.Identity)]
        self.layers = nn.Sequential(*(FoldedMobileLayer(layer, dtype, fused) for layer in layers))
        self.project = FoldedMobileLayer(block.project, dtype, fused)
        self.has_shortcut = block.has_shortcut

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        outputs = self.layers(hidden_states)
        return self.project.convolution.add(outputs, hidden_states) if self.has_shortcut else self.project(outputs)


class FoldedMobileTower(nn.Module):
    """Base of both towers of ave-clip-mini: layers that are run on few items at a time."""

    def __init__(self, layers: list[nn.Module], tower: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.dtype, self.output_dtype = dtype, convolution_dtype(tower)

    def compile_convolutions(self) -> None:
        """Compiles everything."""
        self.layers.compile(options={"freezing": True})

    def record_convolutions(self) -> None:
        """Runs small batches as CUDA graphs."""
        recorded: Any = GraphedCalls(self.layers.forward)
        self.layers.forward = recorded

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Returns the last feature map `(B, D, h, w)` of images or patches `(B, C, H, W)`."""
        parts = few_at_a_time(items.to(self.dtype), self.dtype)
        return torch.cat([self.layers(_channels_last(part)) for part in parts]).to(self.output_dtype)


def _channels_last(items: torch.Tensor) -> torch.Tensor:
    if items.shape[1] > 1:
        return items.contiguous(memory_format=torch.channels_last)
    # One channel is contiguous in both formats, and torch would choose the other one for what follows.
    return items.as_strided(items.shape, (items[0].numel(), 1, items.shape[-1], 1)) if items.is_contiguous() else items


class FoldedEfficientNetLite(FoldedMobileTower):
    """The copy that [`EfficientNetLiteForImageClassification`] runs after `optimize_for_inference`."""

    def __init__(self, model: Any, dtype: torch.dtype, fused: bool) -> None:
        ends = [FoldedMobileLayer(layer, dtype, fused) for layer in (model.stem, model.head)]
        blocks = [FoldedMobileBlock(block, dtype, fused) for block in model.blocks]
        super().__init__([ends[0], *blocks, ends[1]], model, dtype)


class FoldedMobileNet(FoldedMobileTower):
    """The copy that [`AVEClipMiniAudioModel`] runs after `optimize_for_inference`: pooled vectors `(B, D)`."""

    def __init__(self, model: Any, dtype: torch.dtype, fused: bool) -> None:
        network, pads = model.mobilenet_v1, model.config.tf_padding
        layers = [FoldedMobileLayer(layer, dtype, fused, pads) for layer in (network.conv_stem, *network.layer)]
        super().__init__([*layers, network.pooler, nn.Flatten()], model, dtype)


# Keys are `model_type`s, because importing the classes of the towers would be circular.
FOLDED_TOWERS = {
    "audioclip_vision_model": FoldedVisionTower,
    "audioclip_audio_model": FoldedAudioTower,
    "efficientnet_lite": FoldedEfficientNetLite,
    "mobilenet_v1": FoldedMobileNet,
}
# The localizer's layers that map each location of each frame: hundreds of rows.
FAST_LINEARS = ("visual_map_projection", "visual_attention.visual_projection", "visual_attention.visual_score")


def optimize_towers(
    model: PreTrainedModel, dtype: torch.dtype | str | None, compile: bool, cuda_graphs: bool = False
) -> None:
    """Implements [`AlignedPreTrainedModel.optimize_for_inference`]."""
    options = InferenceOptions(inference_dtype(dtype), bool(compile), bool(cuda_graphs))
    undo_optimization(model)
    try:
        for module in list(model.modules()):
            # transformers' own MobileNetV1 has the `model_type` of a tower, but no `_compute` to replace.
            is_model = isinstance(module, PreTrainedModel) and isinstance(module, HasFastPath)
            if is_model and module.config.model_type in FOLDED_TOWERS:
                FastPath(module, FOLDED_TOWERS[module.config.model_type], options).install()
    except Exception:
        undo_optimization(model)
        raise
    for name, module in model.named_modules():
        if name.endswith(FAST_LINEARS) and type(module) is nn.Linear:
            module.__class__ = FastLinear


def undo_optimization(model: PreTrainedModel) -> None:
    """Implements [`AlignedPreTrainedModel.undo_inference_optimization`]."""
    for module in model.modules():
        fast_path = getattr(module, "fast_path", None)
        if fast_path is not None:
            fast_path.remove()
        if type(module) is FastLinear:
            module.__class__ = nn.Linear  # pyrefly: ignore[bad-argument-type]  (knows subclasses only)


__all__ = [
    "FoldedAudioTower",
    "FoldedEfficientNetLite",
    "FoldedMobileNet",
    "FoldedSpectrogram",
    "FoldedVisionTower",
    "optimize_towers",
    "undo_optimization",
]
