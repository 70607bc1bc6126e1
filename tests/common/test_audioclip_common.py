"""transformers' common tests on AudioCLIP's models, configs, feature extractor and processor."""

import unittest

from transformers import CLIPTextConfig
from transformers.testing_utils import torch_device

from ave_clip.configuration_audioclip import AudioCLIPAudioConfig, AudioCLIPConfig, AudioCLIPVisionConfig
from ave_clip.modeling_audioclip import AudioCLIPModel
from ave_clip.modeling_clip_resnet import AudioCLIPVisionModel
from ave_clip.modeling_esresnext import AudioCLIPAudioModel

from . import load_transformers_tests

modeling = load_transformers_tests("test_modeling_common")
configuration = load_transformers_tests("test_configuration_common")


class VisionModelTester:
    def __init__(self, parent):
        self.parent = parent
        self.batch_size = 3
        self.is_training = True
        self.num_hidden_layers = 4
        self.projection_dim = 16

    def get_config(self) -> AudioCLIPVisionConfig:
        return AudioCLIPVisionConfig(
            image_size=96, width=4, depths=(1, 1, 1, 1), num_attention_heads=4, projection_dim=self.projection_dim
        )

    def prepare_config_and_inputs_for_common(self):
        pixel_values = modeling.floats_tensor([self.batch_size, 3, 96, 96])
        return self.get_config(), {"pixel_values": pixel_values}


class AudioModelTester:
    def __init__(self, parent):
        self.parent = parent
        self.batch_size = 3
        self.is_training = True
        self.num_hidden_layers = 4
        self.projection_dim = 16
        self.num_samples = 4096

    def get_config(self) -> AudioCLIPAudioConfig:
        return AudioCLIPAudioConfig(
            sampling_rate=22050,
            n_fft=512,
            hop_length=256,
            win_length=512,
            width=4,
            width_per_group=16,
            groups=2,
            depths=(1, 1, 1, 1),
            projection_dim=self.projection_dim,
        )

    def prepare_config_and_inputs_for_common(self):
        input_values = (modeling.floats_tensor([self.batch_size, self.num_samples]) - 0.5) * 20000
        return self.get_config(), {"input_values": input_values}


class AudioCLIPModelTester:
    def __init__(self, parent):
        self.parent = parent
        self.batch_size = 3
        self.is_training = True
        self.seq_length = 7
        self.num_hidden_layers = 2
        self.vision_model_tester = VisionModelTester(parent)
        self.audio_model_tester = AudioModelTester(parent)

    def get_config(self) -> AudioCLIPConfig:
        text_config = CLIPTextConfig(
            vocab_size=99,
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=4,
            max_position_embeddings=32,
            bos_token_id=97,
            eos_token_id=98,
        )
        return AudioCLIPConfig(
            text_config=text_config,
            vision_config=self.vision_model_tester.get_config(),
            audio_config=self.audio_model_tester.get_config(),
            projection_dim=16,
        )

    def prepare_config_and_inputs_for_common(self):
        input_ids = modeling.ids_tensor([self.batch_size, self.seq_length], 97)
        input_ids[:, -1] = 98
        return self.get_config(), {
            "input_ids": input_ids,
            "attention_mask": modeling.random_attention_mask([self.batch_size, self.seq_length]).to(torch_device),
            **self.vision_model_tester.prepare_config_and_inputs_for_common()[1],
            **self.audio_model_tester.prepare_config_and_inputs_for_common()[1],
            "return_loss": True,
        }


class AudioCLIPVisionModelTest(modeling.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (AudioCLIPVisionModel,)

    def setUp(self):
        self.model_tester = VisionModelTester(self)
        self.config_tester = configuration.ConfigTester(
            self, config_class=AudioCLIPVisionConfig, has_text_modality=False
        )

    def test_config(self):
        self.config_tester.run_common_tests()


class AudioCLIPAudioModelTest(modeling.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (AudioCLIPAudioModel,)
    has_attentions = False

    def setUp(self):
        self.model_tester = AudioModelTester(self)
        self.config_tester = configuration.ConfigTester(
            self,
            config_class=AudioCLIPAudioConfig,
            has_text_modality=False,
            common_properties=["hidden_size", "num_hidden_layers"],
        )

    def test_config(self):
        self.config_tester.run_common_tests()


class AudioCLIPModelTest(modeling.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (AudioCLIPModel,)
    _is_composite = True

    def setUp(self):
        self.model_tester = AudioCLIPModelTester(self)
        self.config_tester = configuration.ConfigTester(self, config_class=AudioCLIPConfig, has_text_modality=False)

    def test_config(self):
        self.config_tester.run_common_tests()
