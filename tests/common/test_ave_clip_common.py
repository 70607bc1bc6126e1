"""transformers' common tests on the localizer, its configuration and its processor."""

import unittest

import torch
from transformers.testing_utils import torch_device

from ave_clip.core.configuration_ave_clip import AVEClipConfig
from ave_clip.core.feature_extraction_audioclip import AudioCLIPFeatureExtractor
from ave_clip.core.modeling_ave_clip import AVEClipForLocalization
from ave_clip.core.processing_ave_clip import AVEClipProcessor
from ave_clip.core.video_processing_ave_clip import AVEClipVideoProcessor
from tests.helpers.models import TINY_AUDIO, TINY_VISION, tiny_config

from . import load_transformers_tests

modeling = load_transformers_tests("test_modeling_common")
configuration = load_transformers_tests("test_configuration_common")
processing = load_transformers_tests("test_processing_common")


class LocalizerTester:
    def __init__(self, parent):
        self.parent = parent
        self.batch_size = 2
        self.seq_length = 7  # segments
        self.is_training = True
        self.hidden_size = 16
        self.num_hidden_layers = 2
        self.expected_num_hidden_layers = 4  # the video, audio and last BiLSTM and the refiner

    def get_config(self) -> AVEClipConfig:
        return tiny_config()

    def prepare_config_and_inputs_for_common(self):
        size, samples = TINY_VISION["image_size"], TINY_AUDIO["sampling_rate"] // 4
        shape = [self.batch_size, self.seq_length]
        return self.get_config(), {
            "pixel_values": modeling.floats_tensor([*shape, 2, 3, size, size]),
            "input_values": (modeling.floats_tensor([*shape, samples]) - 0.5) * 20000,
        }


class AVEClipForLocalizationTest(modeling.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (AVEClipForLocalization,)
    has_attentions = (
        False  # its maps are named after what they attend to (visual, temporal, feature), not `attentions`
    )
    test_resize_embeddings = False  # there is no vocabulary
    _is_composite = True

    @unittest.skip("Pixels and samples enter through convolutions: there is no nn.Embedding.")
    def test_model_get_set_embeddings(self):
        pass

    @unittest.skip("Weights that are missing in a file are an error here: see tests/core/test_loading.py.")
    def test_model_weights_reload_no_missing_tied_weights(self):
        pass

    def setUp(self):
        self.model_tester = LocalizerTester(self)
        self.config_tester = configuration.ConfigTester(self, config_class=AVEClipConfig, has_text_modality=False)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs_dict = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels:
            shape = (self.model_tester.batch_size, self.model_tester.seq_length)
            inputs_dict["labels"] = torch.zeros(shape, dtype=torch.long, device=torch_device)
        return inputs_dict

    def test_batching_equivalence(self):
        """Another batch size may take another kernel, which rounds in another way."""
        super().test_batching_equivalence(atol=1e-4, rtol=1e-4)

    def test_config(self):
        self.config_tester.run_common_tests()


class AVEClipProcessorTest(processing.ProcessorTesterMixin, unittest.TestCase):
    processor_class = AVEClipProcessor
    videos_input_name = "pixel_values"

    @unittest.skip("Texts contain no placeholders for frames or audio.")
    def test_replacement_offsets(self):
        pass

    @classmethod
    def _setup_feature_extractor(cls):
        return AudioCLIPFeatureExtractor()

    @classmethod
    def _setup_video_processor(cls):
        return AVEClipVideoProcessor()

    @staticmethod
    def prepare_processor_dict():
        return {"id2label": {0: "Bell", 1: "background"}}
