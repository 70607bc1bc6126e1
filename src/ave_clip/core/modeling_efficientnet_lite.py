"""EfficientNet-lite, an image classifier for small devices (the released weights are EfficientNet-lite0's).

EfficientNet (Tan & Le 2019) without squeeze-and-excitation and with ReLU6, following `tensorflow/tpu`'s
`efficientnet/lite`.

Legend: B batch, C channels, H x W image, h x w last feature map, D width of the last feature map.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_ave_clip_mini import EfficientNetLiteConfig
from .fast_path import HasFastPath


@dataclass
class EfficientNetLiteOutput(ModelOutput):
    """Output of [`EfficientNetLiteForImageClassification`].

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
            Cross-entropy.
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`):
            Class scores before softmax.
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, hidden_size, h, w)`):
            The last feature map, whose average over the image is classified.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None


class EfficientNetLiteConvolution(nn.Module):
    """Convolution, batch normalization and, unless it ends a block, ReLU6."""

    def __init__(
        self, in_width: int, out_width: int, kernel: int, stride: int, groups: int, eps: float, activation: bool = True
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.convolution = nn.Conv2d(in_width, out_width, kernel, stride, groups=groups, bias=False)
        self.normalization = nn.BatchNorm2d(out_width, eps=eps)
        self.activation = nn.ReLU6(inplace=True) if activation else nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Maps `(B, C, H, W)` to `(B, out_width, ceil(H / stride), ceil(W / stride))`."""
        # TensorFlow's "SAME" padding: if an odd number of pixels is missing, the right and bottom get one more. The
        # convolution pads the same number on both sides by itself, without a padded copy of the input.
        padding = []
        for size in hidden_states.shape[-2:]:
            missing = max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0)
            padding.append(missing // 2)
            if missing % 2:
                hidden_states = nn.functional.pad(hidden_states, (0, 1) if len(padding) == 2 else (0, 0, 0, 1))
        layer = self.convolution
        outputs = nn.functional.conv2d(hidden_states, layer.weight, None, layer.stride, padding, 1, layer.groups)
        return self.activation(self.normalization(outputs))


class EfficientNetLiteBlock(nn.Module):
    """Inverted bottleneck: expansion, depthwise convolution, projection, and a shortcut if the shape is unchanged."""

    def __init__(self, in_width: int, out_width: int, kernel: int, stride: int, expansion: int, eps: float) -> None:
        super().__init__()
        width = in_width * expansion
        self.expand = EfficientNetLiteConvolution(in_width, width, 1, 1, 1, eps) if expansion > 1 else nn.Identity()
        self.depthwise = EfficientNetLiteConvolution(width, width, kernel, stride, width, eps)
        self.project = EfficientNetLiteConvolution(width, out_width, 1, 1, 1, eps, activation=False)
        self.has_shortcut = stride == 1 and in_width == out_width

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        outputs = self.project(self.depthwise(self.expand(hidden_states)))
        return outputs + hidden_states if self.has_shortcut else outputs


class EfficientNetLiteForImageClassification(HasFastPath, PreTrainedModel):
    """Image classifier."""

    config_class = EfficientNetLiteConfig
    base_model_prefix = "efficientnet_lite"
    main_input_name = "pixel_values"
    input_modalities = ["image"]

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        eps, width = config.batch_norm_eps, config.stem_size
        self.stem = EfficientNetLiteConvolution(config.num_channels, width, 3, 2, 1, eps)
        self.blocks = nn.ModuleList()
        for repeats, kernel, first_stride, expansion, out_width in config.stages:
            for index in range(repeats):
                stride = first_stride if index == 0 else 1
                self.blocks.append(EfficientNetLiteBlock(width, out_width, kernel, stride, expansion, eps))
                width = out_width
        self.head = EfficientNetLiteConvolution(width, config.hidden_size, 1, 1, 1, eps)
        self.classifier = nn.Linear(config.hidden_size, len(config.id2label))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def feature_map(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Computes the last feature map `(B, D, h, w)` of images `(B, C, H, W)`."""
        return self._compute(pixel_values)

    def _compute(self, pixel_values: torch.Tensor) -> torch.Tensor:
        # CPUs convolve faster with the channels of a pixel beside each other; the result is the same.
        hidden_states = self.stem(pixel_values.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return self.head(hidden_states)

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs
    ) -> EfficientNetLiteOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Images, `(value - 127) / 128` for values from 0 to 255.
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Class indices for the loss.
        """
        feature_map = self.feature_map(pixel_values)
        logits = self.classifier(feature_map.mean(dim=(2, 3)))
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return EfficientNetLiteOutput(loss=loss, logits=logits, last_hidden_state=feature_map)


__all__ = ["EfficientNetLiteForImageClassification", "EfficientNetLiteOutput"]
