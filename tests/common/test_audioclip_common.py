"""transformers' common tests on AudioCLIP's models, configs, feature extractor and processor.

A test of the mixins is replaced only where it asks for what a convolutional network does not have; the replacement
tests the same thing in the form it has here, or says why it is skipped.
"""

import copy
import unittest

import torch
from parameterized import parameterized
from tokenizers import pre_tokenizers
from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTokenizer, set_seed
from transformers.testing_utils import torch_device

from ave_clip.core.configuration_audioclip import AudioCLIPAudioConfig, AudioCLIPConfig, AudioCLIPVisionConfig
from ave_clip.core.feature_extraction_audioclip import AudioCLIPFeatureExtractor
from ave_clip.core.modeling_audioclip import AudioCLIPModel
from ave_clip.core.modeling_clip_resnet import AudioCLIPVisionModel
from ave_clip.core.modeling_esresnext import AudioCLIPAudioModel
from ave_clip.core.processing_audioclip import AudioCLIPProcessor

from . import load_transformers_tests

modeling = load_transformers_tests("test_modeling_common")
configuration = load_transformers_tests("test_configuration_common")
sequence_feature_extraction = load_transformers_tests("test_sequence_feature_extraction_common")
processing = load_transformers_tests("test_processing_common")

SDPA_CASES = modeling.TEST_EAGER_MATCHES_SDPA_INFERENCE_PARAMETERIZATION
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
BATCHING_TOLERANCE = 1e-4
TOLERANCES = {torch.float16: 5e-3, torch.bfloat16: 3e-2, torch.float32: 1e-5}


class VisionModelTester:
    """A tiny image tower. It has four stages whatever its size, so it names no `num_hidden_layers`."""

    def __init__(self, parent):
        self.parent = parent
        self.batch_size = 3
        self.is_training = False  # has no loss of its own
        self.expected_num_hidden_layers = 5
        self.projection_dim = 16

    def get_config(self) -> AudioCLIPVisionConfig:
        return AudioCLIPVisionConfig(
            image_size=96, width=4, depths=(1, 1, 1, 1), num_attention_heads=4, projection_dim=self.projection_dim
        )

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"pixel_values": modeling.floats_tensor([self.batch_size, 3, 96, 96])}


class AudioModelTester:
    """A tiny audio tower. It has four stages whatever its size, so it names no `num_hidden_layers`."""

    def __init__(self, parent):
        self.parent = parent
        self.batch_size = 3
        self.is_training = False  # has no loss of its own
        self.expected_num_hidden_layers = 5
        self.projection_dim = 16
        # Long enough that no convolution with stride has an output of width 1: there oneDNN of torch 2.14 reads memory
        # that nothing has written, in bfloat16 on CPUs with AMX, whatever the number of groups.
        self.num_samples = 12288

    def get_config(self) -> AudioCLIPAudioConfig:
        return AudioCLIPAudioConfig(
            sampling_rate=22050,
            n_fft=512,
            hop_length=256,
            win_length=512,
            width=8,
            width_per_group=64,
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


class TowerTests(modeling.ModelTesterMixin):
    """What holds for both convolutional towers."""

    @unittest.skip("Weights that are missing in a file are an error here: see tests/core/test_loading.py.")
    def test_model_weights_reload_no_missing_tied_weights(self):
        pass

    def test_batching_equivalence(self):
        """Another batch size may take another kernel, which rounds in another way."""
        super().test_batching_equivalence(atol=BATCHING_TOLERANCE, rtol=BATCHING_TOLERANCE)

    test_resize_embeddings = False  # no vocabulary
    test_can_init_all_missing_weights_before_2023 = True
    expected_map_sizes: tuple[tuple[int, int, int], ...]

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_model_get_set_embeddings(self):
        """The input embedding of these towers is a convolution, not a table."""
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        model = self.all_model_classes[0](config)
        self.assertIs(model.get_input_embeddings(), model.conv1)
        self.assertIsNone(model.get_output_embeddings())

    def test_hidden_states_output(self):
        """The stem and each stage give a feature map, asked for by the call or by the config."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model_class = self.all_model_classes[0]
        with torch.no_grad():
            by_call = model_class(config).eval()(**inputs, output_hidden_states=True).hidden_states
            config.output_hidden_states = True
            by_config = model_class(config).eval()(**inputs).hidden_states
        expected = [(self.model_tester.batch_size, *size) for size in self.expected_map_sizes]
        self.assertEqual([tuple(state.shape) for state in by_call], expected)
        self.assertEqual([tuple(state.shape) for state in by_config], expected)

    def test_training(self):
        """The towers have no loss of their own; their gradients are tested through the embeddings."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = self.all_model_classes[0](config).train()
        model(**inputs)[0].square().sum().backward()
        missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        self.assertEqual(missing, [])


class AudioCLIPVisionModelTest(TowerTests, unittest.TestCase):
    all_model_classes = (AudioCLIPVisionModel,)
    expected_map_sizes = ((4, 24, 24), (16, 24, 24), (32, 12, 12), (64, 6, 6), (128, 3, 3))

    def setUp(self):
        self.model_tester = VisionModelTester(self)
        self.config_tester = configuration.ConfigTester(
            self, config_class=AudioCLIPVisionConfig, has_text_modality=False
        )

    def test_attention_outputs(self):
        """There is one attention, that of the pool, with one query for the mean token."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = AudioCLIPVisionModel._from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            attentions = model(**inputs, output_attentions=True).attentions
        self.assertEqual([tuple(weights.shape) for weights in attentions], [(self.model_tester.batch_size, 4, 1, 10)])
        torch.testing.assert_close(attentions[0].sum(dim=-1), torch.ones(self.model_tester.batch_size, 4, 1))


class AudioCLIPAudioModelTest(TowerTests, unittest.TestCase):
    all_model_classes = (AudioCLIPAudioModel,)
    has_attentions = False  # its gates are convolutions
    expected_map_sizes = ((8, 22, 12), (32, 22, 12), (64, 11, 6), (128, 6, 3), (256, 3, 2))

    def setUp(self):
        self.model_tester = AudioModelTester(self)
        self.config_tester = configuration.ConfigTester(
            self,
            config_class=AudioCLIPAudioConfig,
            has_text_modality=False,
            common_properties=["hidden_size", "num_hidden_layers"],
        )


class AudioCLIPModelTest(modeling.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (AudioCLIPModel,)
    test_can_init_all_missing_weights_before_2023 = True
    _is_composite = True
    # The last hidden state of the audio tower is its feature map, of `hidden_size` channels, not of `projection_dim`.
    skip_test_audio_features_output_shape = True

    @unittest.skip("Weights that are missing in a file are an error here: see tests/core/test_loading.py.")
    def test_model_weights_reload_no_missing_tied_weights(self):
        pass

    def test_batching_equivalence(self):
        super().test_batching_equivalence(atol=BATCHING_TOLERANCE, rtol=BATCHING_TOLERANCE)

    def setUp(self):
        self.model_tester = AudioCLIPModelTester(self)
        self.config_tester = configuration.ConfigTester(self, config_class=AudioCLIPConfig, has_text_modality=False)

    def test_config(self):
        self.config_tester.run_common_tests()

    def _image_features_get_expected_num_attentions(self, model_tester=None):
        return 1  # the attention pool

    def _image_features_get_expected_num_hidden_states(self, model_tester=None):
        return self.model_tester.vision_model_tester.expected_num_hidden_layers

    @unittest.skip(reason="The audio tower has no attention: its gates are convolutions")
    def test_get_audio_features_attentions(self):
        pass

    def test_hidden_states_output(self):
        """Each tower's output holds its hidden states."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = AudioCLIPModel(config).eval()
        with torch.no_grad():
            outputs = model(**inputs, output_hidden_states=True)
        self.assertEqual(len(outputs.text_model_output.hidden_states), self.model_tester.num_hidden_layers + 1)
        self.assertEqual(len(outputs.vision_model_output.hidden_states), 5)
        self.assertEqual(len(outputs.audio_model_output.hidden_states), 5)

    def test_attention_outputs(self):
        """The text and image towers' outputs hold their attention weights."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = AudioCLIPModel._from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            outputs = model(**inputs, output_attentions=True)
        batch_size, length = inputs["input_ids"].shape
        shapes = [tuple(weights.shape) for weights in outputs.text_model_output.attentions]
        self.assertEqual(shapes, [(batch_size, 4, length, length)] * self.model_tester.num_hidden_layers)
        self.assertEqual(outputs.vision_model_output.attentions[0].shape, (batch_size, 4, 1, 10))

    def test_retain_grad_hidden_states_attentions(self):
        """Gradients of the loss reach each tower's first hidden state and the attention weights."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = AudioCLIPModel._from_config(config, attn_implementation="eager")
        outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
        text, image, audio = outputs.text_model_output, outputs.vision_model_output, outputs.audio_model_output
        kept = [output.hidden_states[0] for output in (text, image, audio)]
        kept += [text.attentions[0], image.attentions[0]]
        for tensor in kept:
            tensor.retain_grad()
        outputs.loss.backward()
        for tensor in kept:
            self.assertGreater(tensor.grad.abs().max().item(), 0)

    @parameterized.expand(SDPA_CASES)
    def test_eager_matches_sdpa_inference(
        self, name, dtype, padding_side, use_attention_mask, output_attentions, enable_kernels
    ):
        """The original reads `logits_per_text` or `hidden_states`; here the three embeddings are compared."""
        set_seed(42)
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        dtype = DTYPES[dtype]
        mask = torch.ones_like(inputs["attention_mask"])
        mask[-1, slice(0, 2) if padding_side == "left" else slice(-2, None)] = 0
        inputs["attention_mask"] = mask if use_attention_mask else None
        sdpa = AudioCLIPModel._from_config(config, attn_implementation="sdpa").eval().to(dtype)
        eager = copy.deepcopy(sdpa)
        eager.set_attn_implementation("eager")
        with torch.no_grad(), modeling.sdpa_kernel(enable_kernels, True, enable_kernels):
            expected, actual = eager(**inputs, output_attentions=output_attentions), sdpa(**inputs)
        self.assertEqual(eager.vision_model.config._attn_implementation, "eager")
        self.assertEqual(sdpa.vision_model.config._attn_implementation, "sdpa")
        tolerance = TOLERANCES[dtype]
        for key in ("text_embeds", "image_embeds", "audio_embeds"):
            torch.testing.assert_close(actual[key], expected[key], atol=tolerance, rtol=tolerance)


class AudioCLIPFeatureExtractionTester:
    feature_size = 1
    batch_size = 7
    min_seq_length = 400
    max_seq_length = 2000
    seq_length_diff = (max_seq_length - min_seq_length) // (batch_size - 1)

    def prepare_feat_extract_dict(self):
        return {"feature_size": 1, "sampling_rate": 44100, "padding_value": 0.0, "return_attention_mask": True}

    def prepare_inputs_for_common(self, equal_length=False, numpify=False):
        lengths = range(self.min_seq_length, self.max_seq_length, self.seq_length_diff)
        lengths = [self.max_seq_length] * self.batch_size if equal_length else lengths
        clips = [processing.floats_list((1, length))[0] for length in lengths]
        return [torch.tensor(clip).numpy() for clip in clips] if numpify else clips


class AudioCLIPFeatureExtractionTest(
    sequence_feature_extraction.SequenceFeatureExtractionTestMixin, unittest.TestCase
):
    feature_extraction_class = AudioCLIPFeatureExtractor

    def setUp(self):
        self.feat_extract_tester = AudioCLIPFeatureExtractionTester()


class AudioCLIPProcessorTest(processing.ProcessorTesterMixin, unittest.TestCase):
    processor_class = AudioCLIPProcessor
    audio_input_name = "input_values"

    @unittest.skip("Texts contain no placeholders for frames or audio.")
    def test_replacement_offsets(self):
        pass

    @classmethod
    def _setup_image_processor(cls):
        return CLIPImageProcessor()

    @classmethod
    def _setup_feature_extractor(cls):
        return AudioCLIPFeatureExtractor()

    @classmethod
    def _setup_tokenizer(cls):
        characters = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokens = [*characters, *(f"{character}</w>" for character in characters)]
        tokens += ["lo", "low", "er</w>", "<|startoftext|>", "<|endoftext|>"]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        return CLIPTokenizer(vocab=vocabulary, merges=[("l", "o"), ("lo", "w"), ("e", "r</w>")])
