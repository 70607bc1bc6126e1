"""The localizer: batching, padding, attention maps, losses, saving, and what it refuses."""

import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ave_clip import AVEClipConfig
from ave_clip.core.losses import event_attention_loss, segment_contrastive_loss, segment_loss, video_level_loss
from ave_clip.core.modeling_ave_clip import AVEClipForLocalization
from ave_clip.core.modeling_fusion import BlockLayout, block_layout, multi_domain_attention
from tests.helpers.models import tiny_config, tiny_localizer


def features(batch_size: int, num_segments: int, width: int = 24, locations: int = 4, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(batch_size, num_segments, locations, width, generator=generator)
    return {
        "image_features": image,
        "audio_features": torch.randn(batch_size, num_segments, width, generator=generator),
    }


def raw(batch_size: int = 2, num_segments: int = 3, num_frames: int = 2, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.randn(batch_size, num_segments, num_frames, 3, 64, 64, generator=generator),
        "input_values": torch.randn(batch_size, num_segments, 8000, generator=generator) * 3000,
    }


def assert_close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("num_segments", [1, 7, 10, 23])
def test_a_batch_equals_its_members(localizer, num_segments):
    inputs = features(3, num_segments)
    together = localizer(**inputs).logits
    for row in range(3):
        alone = localizer(**{name: value[row : row + 1] for name, value in inputs.items()}).logits
        assert_close(together[row : row + 1], alone)


@pytest.mark.parametrize("length", [1, 2, 4, 7, 9])
@pytest.mark.parametrize("domains", ["both", "temporal", "feature"])
def test_padding_changes_nothing(length, domains):
    model = tiny_localizer(attention_domains=domains)
    inputs = features(2, 10)
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[1, length:] = False
    padded = model(**inputs, segment_mask=mask).logits
    alone = model(**{name: value[1:, :length] for name, value in inputs.items()}).logits
    assert_close(padded[1:, :length], alone)
    inputs["image_features"][1, length:] = torch.nan
    inputs["audio_features"][1, length:] = 1e30
    assert_close(model(**inputs, segment_mask=mask).logits[1, :length], padded[1, :length], tolerance=0)
    assert_close(padded[0], model(**{name: value[:1] for name, value in inputs.items()}).logits[0])


def test_cached_features_give_the_logits_of_raw_input(localizer):
    inputs = raw()
    frame_mask = torch.tensor([[[True, True], [True, False], [False, False]]] * 2)
    image_features, audio_features = localizer.encode(**inputs, frame_mask=frame_mask)
    assert image_features.shape == (2, 3, 4, 24)
    assert (image_features[:, 2] == 0).all()
    cached = localizer(image_features=image_features, audio_features=audio_features).logits
    assert_close(localizer(**inputs, frame_mask=frame_mask).logits, cached, tolerance=0)


def test_frame_features_are_averaged_over_the_real_frames(localizer):
    inputs = raw(batch_size=1, num_segments=1, num_frames=3)
    frame_mask = torch.tensor([[[True, False, True]]])
    mean, _ = localizer.encode(**inputs, frame_mask=frame_mask)
    frames = localizer.vision_model(inputs["pixel_values"][0, 0, [0, 2]], feature_types=("dense",)).dense_embeds
    assert_close(mean[0, 0], frames.mean(dim=0))


def test_encoded_features_are_those_of_the_towers():
    model = tiny_localizer(visual_feature_type="pooled")
    inputs = raw(num_frames=1)
    with torch.no_grad():
        image_features, audio_features = model.encode(**inputs)
        images = model.vision_model(inputs["pixel_values"].flatten(0, 2)).image_embeds
        sounds = model.audio_model(inputs["input_values"].flatten(0, 1)).audio_embeds
    assert_close(image_features.flatten(0, 1), images, tolerance=1e-4)
    assert_close(audio_features.flatten(0, 1), sounds, tolerance=1e-4)


def test_frames_may_be_prepared_while_they_are_encoded(localizer):
    inputs = raw()
    expected = localizer.encode(**inputs)
    halves = {**inputs, "pixel_values": inputs["pixel_values"] / 2}
    for found, wanted in zip(localizer.encode(**halves, prepare_pixels=lambda frames: 2 * frames), expected):
        assert_close(found, wanted, tolerance=0)


def test_masked_frames_and_segments_are_never_looked_at(localizer):
    inputs = raw()
    frame_mask = torch.tensor([[[True, True], [True, False], [True, True]]] * 2)
    segment_mask = torch.tensor([[True, True, True], [True, True, False]])
    before = localizer(**inputs, frame_mask=frame_mask, segment_mask=segment_mask).logits
    inputs["pixel_values"][:, 1, 1] = torch.nan
    inputs["pixel_values"][1, 2] = torch.nan
    inputs["input_values"][1, 2] = torch.nan
    after = localizer(**inputs, frame_mask=frame_mask, segment_mask=segment_mask).logits
    assert_close(after[segment_mask], before[segment_mask], tolerance=0)


@pytest.mark.parametrize("num_segments", [7, 10])
def test_attention_maps_are_what_the_paper_says(localizer, num_segments):
    output = localizer(**features(2, num_segments), output_attentions=True)
    assert_close(output.visual_attentions.sum(-1), torch.ones(2, num_segments))
    blocks = {10: [[10], [5, 5], [3, 3, 4], [2] * 5], 7: [[7], [7], [3, 4], [2, 2, 3]]}[num_segments]
    for sizes, temporal, feature in zip(blocks, output.temporal_attentions, output.feature_attentions):
        diagonal = torch.block_diag(*[torch.ones(size, size) for size in sizes])
        assert (temporal[:, diagonal == 0] == 0).all()
        assert_close(temporal.sum(-1), torch.ones(2, num_segments))
        assert feature.shape == (2, len(sizes), 16, 16)
        assert_close(feature.sum(-2), torch.ones(2, len(sizes), 16))


def test_one_domain_has_no_maps_of_the_other():
    temporal = tiny_localizer(attention_domains="temporal")(**features(1, 10), output_attentions=True)
    feature = tiny_localizer(attention_domains="feature")(**features(1, 10), output_attentions=True)
    assert temporal.feature_attentions is None and len(temporal.temporal_attentions) == 4
    assert feature.temporal_attentions is None and len(feature.feature_attentions) == 4


def test_attention_of_each_block_is_equations_8_to_10():
    """Against the paper's formulas, block by block in Python."""
    generator = torch.Generator().manual_seed(3)
    query, key, value = torch.randn(3, 2, 10, 6, generator=generator, dtype=torch.float64)
    fused, _, _ = multi_domain_attention(query, key, value, BlockLayout(10, 3, None, query.device), "both")
    for row in range(2):
        expected = []
        for start, end in [(0, 3), (3, 6), (6, 10)]:
            q, k, v = (tensor[row, start:end] for tensor in (query, key, value))
            temporal = (q @ k.T / 6**0.5).softmax(dim=1)
            feature = (k.T @ q / (end - start) ** 0.5).softmax(dim=0)
            expected.append(temporal @ (v @ feature))
        assert_close(fused[row], torch.cat(expected), tolerance=1e-12)


def test_shared_windows_cost_no_parameters_and_independent_ones_do():
    def size(model) -> int:
        return sum(parameter.numel() for parameter in model.fusion.parameters())

    windows = [(10,), (10, 5), (10, 5, 3)]
    shared = [size(tiny_localizer(window_sizes=sizes)) for sizes in windows]
    independent = [size(tiny_localizer(window_sizes=sizes, share_window_weights=False)) for sizes in windows]
    assert shared[0] == shared[1] == shared[2] == independent[0]
    assert independent == [shared[0], 2 * shared[0], 3 * shared[0]]


@pytest.mark.parametrize(
    "changes",
    [
        {"use_event_attention": False},
        {"use_refiner": False},
        {"fusion_residual": False},
        {"share_window_weights": False},
        {"attention_domains": "feature"},
        {"refiner_window_sizes": (10, 5)},
        {"visual_feature_type": "pooled"},
        {"visual_feature_type": "layer4"},
    ],
)
def test_every_switch_trains_and_every_parameter_of_the_localizer_gets_a_gradient(changes):
    model = tiny_localizer(**changes).train()
    loss = model(**raw(num_segments=7), labels=torch.randint(0, 4, (2, 7))).loss
    loss.backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None and not name.startswith(("vision_model.", "audio_model."))
    ]
    assert without == []
    assert loss.isfinite()


def test_dropout_follows_the_bilstms_and_the_fusions():
    """Video and audio BiLSTM, fusion over four windows, refiner and last BiLSTM; none in evaluation."""
    model = tiny_localizer(dropout=0.5).train()
    widths = []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(lambda own, inputs, output: widths.append(output.shape[-1]))
    cached = features(2, 7)
    assert not torch.equal(model(**cached).logits, model(**cached).logits)
    assert sorted(widths) == [16] * 8 + [64] * 2  # of both calls
    model.eval()
    assert_close(model(**cached).logits, model(**cached).logits, tolerance=0)


def test_dropped_features_are_dropped_in_all_segments_and_locations():
    model = tiny_localizer(input_dropout=0.5).train()
    seen = {}
    model.visual_attention.register_forward_pre_hook(lambda module, inputs: seen.update(image=inputs[0]))
    model.audio_lstm.register_forward_pre_hook(lambda module, inputs: seen.update(audio=inputs[0]))
    cached = features(4, 7)
    model(**cached)
    for name, tensor in (("image", cached["image_features"]), ("audio", cached["audio_features"])):
        kept = seen[name].flatten(1, -2).any(dim=1)  # (B, D)
        assert 0.3 < kept.float().mean() < 0.7
        assert not torch.equal(kept[0], kept[1])  # each video has its own
        expected = 2 * tensor * kept.view(4, *[1] * (tensor.dim() - 2), -1)
        assert_close(seen[name], expected, tolerance=0)


def test_the_default_network_starts_as_one_without_windows():
    config = tiny_config(gated_branches=True, hidden_size=16)
    model = AVEClipForLocalization(config).eval()
    cached = features(2, 7)
    before = model(**cached).logits
    for fusion in (model.fusion, model.refiner):
        torch.nn.init.normal_(fusion.projections[0].value[2].weight)
        assert fusion.gates.shape == (len(fusion.window_sizes), 16)
    assert_close(model(**cached).logits, before, tolerance=0)
    model.fusion.gates.data[0] = 1
    assert not torch.equal(model(**cached).logits, before)


@pytest.mark.parametrize("fields", [{}, {"dropout": 0.2, "hidden_size": 64}])
def test_configurations_of_earlier_versions_keep_their_network(fields, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "ave_clip", **fields}))
    earlier = AVEClipConfig.paper(fusion_residual=True, refiner_window_sizes=(10,), **fields)
    loaded = AVEClipConfig.from_pretrained(tmp_path)
    assert loaded.to_diff_dict() == earlier.to_diff_dict()
    AVEClipConfig().save_pretrained(tmp_path)
    assert AVEClipConfig.from_pretrained(tmp_path).to_diff_dict() == AVEClipConfig().to_diff_dict()


def test_paper_preset_has_the_papers_values():
    config = AVEClipConfig.paper()
    assert (config.event_loss_weight, config.category_loss_weight) == (0.3, 0.7)  # eq. 17
    assert config.min_event_segments == 3  # W of sec. 3.7
    assert (config.hidden_size, config.window_sizes, config.refiner_window_sizes) == (256, (10, 5, 3, 2), None)
    assert (config.share_window_weights, config.use_event_attention, config.use_refiner) == (True, True, True)
    assert (config.attention_domains, config.visual_feature_type, config.supervision) == ("both", "dense", "full")
    assert (config.fusion_residual, config.gated_branches, config.input_layer_norm) == (False, False, False)
    assert (config.num_labels, config.id2label[28], config.background_label_id) == (29, "background", 28)
    assert AVEClipConfig.from_dict(config.to_dict()).refiner_window_sizes is None


def test_hybrid_loss_is_equation_17(localizer):
    labels = torch.tensor([[0, 3, -100, 2]])
    output = localizer(**features(1, 4), labels=labels)
    kept = [0, 1, 3]
    category = torch.nn.functional.cross_entropy(output.logits[0, kept], labels[0, kept])
    event = torch.nn.functional.binary_cross_entropy(
        output.event_logits[0, kept].sigmoid(), torch.tensor([1.0, 0.0, 1.0])
    )
    assert_close(output.category_loss, category)
    assert_close(output.event_loss, event)
    assert_close(output.loss, 0.3 * event + 0.7 * category)


def test_smoothed_targets_are_shared_with_all_classes():
    labels = torch.tensor([[0, 3, -100, 2]])
    output = tiny_localizer(label_smoothing=0.2)(**features(1, 4), labels=labels)
    targets = torch.full((3, 4), 0.05)
    targets[range(3), labels[0, [0, 1, 3]]] += 0.8
    expected = -(targets * output.logits[0, [0, 1, 3]].log_softmax(-1)).sum(-1).mean()
    assert_close(output.category_loss, expected)


def contrast_of_a_video(vectors, is_event, temperature):
    """The formula of `segment_contrastive_loss`, term by term."""
    events = [vector for vector, event in zip(vectors, is_event) if event == 1]
    background = [vector for vector, event in zip(vectors, is_event) if event == 0]
    total = torch.zeros(())
    for anchor in events:
        positive, negative = (
            [(torch.nn.functional.cosine_similarity(anchor, other, dim=0) / temperature).exp() for other in others]
            for others in (events, background)
        )
        if background:
            total = total - (sum(positive) / (sum(positive) + sum(negative) / len(negative))).log() / len(events)
    return total, len(events) + len(background)


def test_contrast_is_the_formula_of_cpsp():
    hidden = torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    is_event = torch.tensor([[1, 1, 0, 0, 1, 0], [0, 1, -100, 1, 0, -100], [1] * 6, [0, 0, 0, 0, 0, -100], [-100] * 6])
    videos = [contrast_of_a_video(*video, 0.6) for video in zip(hidden, is_event)]
    assert [bool(loss) for loss, _ in videos] == [True, True, False, False, False]
    expected = sum(loss * number for loss, number in videos) / sum(number for _, number in videos)
    loss = segment_contrastive_loss(hidden, is_event, 0.6)
    assert_close(loss, expected)
    loss.backward()
    assert hidden.grad.flatten(1).any(dim=1).tolist() == [True, True, False, False, False]
    assert not hidden.grad[1, [2, 5]].any()
    hidden = hidden.detach().requires_grad_()
    segment_contrastive_loss(hidden, is_event, 1e-3).backward()  # here exp(cosine / temperature) is infinite
    assert hidden.grad.isfinite().all()


def test_the_contrast_is_part_of_the_loss_and_off_by_default(localizer):
    inputs, labels = features(2, 5), torch.tensor([[0, 0, 3, 3, -100], [3, 1, 1, 1, 2]])
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    plain = localizer(**inputs, labels=labels, segment_mask=mask)
    assert plain.contrastive_loss is None
    output = tiny_localizer(contrastive_loss_weight=0.5)(
        **inputs, labels=labels, segment_mask=mask, output_hidden_states=True
    )
    assert_close(output.loss, plain.loss + 0.5 * output.contrastive_loss)
    videos = [
        contrast_of_a_video(vectors, is_event, 0.6)
        for vectors, is_event in zip(output.hidden_states[-1], ([1, 1, 0, 0, -100], [0, 1, 1, -100, -100]))
    ]
    assert_close(output.contrastive_loss, sum(loss * number for loss, number in videos) / 7)


def test_padded_segments_do_not_count_in_the_loss(localizer):
    inputs, labels = features(1, 6), torch.tensor([[0, 1, 2, 3, 1, 0]])
    mask = torch.tensor([[True] * 4 + [False] * 2])
    short = {name: value[:, :4] for name, value in inputs.items()}
    assert_close(
        localizer(**inputs, labels=labels, segment_mask=mask).loss, localizer(**short, labels=labels[:, :4]).loss
    )


def test_losses_without_any_label_are_zero_not_nan():
    logits, labels = torch.randn(1, 3, 4), torch.full((1, 3), -100)
    assert segment_loss(logits, labels) == 0
    assert event_attention_loss(logits[..., 0], labels) == 0


def test_weak_supervision_scores_the_mean_probability_of_the_video():
    model = tiny_localizer(supervision="weak")
    mask = torch.tensor([[True, True, True], [True, True, False]])
    labels = torch.tensor([2, 3])
    output = model(**features(2, 3), segment_mask=mask, labels=labels)
    probabilities = output.logits.softmax(-1)
    expected = -(probabilities[0, :, 2].mean().log() + probabilities[1, :2, 3].mean().log()) / 2
    assert_close(output.category_loss, expected)
    assert output.event_loss is None
    assert_close(video_level_loss(output.logits, labels, mask), expected)


def test_a_video_that_is_all_padding_counts_in_no_loss():
    model, mask = tiny_localizer(supervision="weak"), torch.tensor([[True, True], [False, False]])
    inputs, labels = features(2, 2), torch.tensor([1, 0])
    inputs["image_features"].requires_grad_()
    both = model(**inputs, segment_mask=mask, labels=labels).loss
    alone = model(**{name: value[:1] for name, value in inputs.items()}, labels=labels[:1]).loss
    assert_close(both, alone)
    both.backward()
    assert inputs["image_features"].grad.isfinite().all()


def test_nan_under_the_padding_does_not_reach_the_gradients(localizer):
    inputs, mask = features(1, 4), torch.tensor([[True, True, True, False]])
    inputs["image_features"][:, 3] = torch.nan
    localizer(**inputs, segment_mask=mask, labels=torch.zeros(1, 4, dtype=torch.long)).loss.backward()
    assert all(p.grad.isfinite().all() for p in localizer.parameters() if p.grad is not None)


def test_saving_and_loading_is_bit_exact(localizer, tmp_path):
    localizer.save_pretrained(tmp_path)
    loaded = AVEClipForLocalization.from_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    for name, value in localizer.state_dict().items():
        assert_close(loaded.state_dict()[name], value, tolerance=0)
    inputs = raw()
    assert_close(loaded(**inputs).logits, localizer(**inputs).logits, tolerance=0)


def test_frozen_encoders_stay_as_they_are_in_training():
    model = tiny_localizer()
    model.freeze_encoders()
    model.train()
    before = {name: value.clone() for name, value in model.vision_model.state_dict().items()}
    model(**raw(), labels=torch.zeros(2, 3, dtype=torch.long)).loss.backward()
    assert all(parameter.grad is None for parameter in model.audio_model.parameters())
    assert model.fusion.training and not model.vision_model.training
    for name, value in model.vision_model.state_dict().items():
        assert_close(value, before[name], tolerance=0)


def test_localizer_on_other_peoples_features_has_no_towers():
    model = tiny_localizer(use_encoders=False, image_feature_size=512, audio_feature_size=128)
    names = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert not names & {"vision_model", "audio_model"}
    maps, audio = torch.randn(2, 10, 7, 7, 512), torch.randn(2, 10, 128)
    flat = model(image_features=maps.flatten(2, 3), audio_features=audio).logits
    assert_close(model(image_features=maps, audio_features=audio).logits, flat, tolerance=0)
    with pytest.raises(ValueError, match="use_encoders=False"):
        model(**raw())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_agree_with_float32(localizer, dtype):
    inputs = raw()
    expected = localizer(**inputs).logits
    logits = tiny_localizer().to(dtype)(inputs["pixel_values"].to(dtype), inputs["input_values"]).logits
    assert logits.dtype == dtype
    assert_close(logits.float(), expected, tolerance=0.03)


def test_export_of_the_localizer_gives_the_same_logits(localizer):
    inputs = features(1, 10)
    program = torch.export.export(localizer, (), inputs)
    assert_close(program.module()(**inputs).logits, localizer(**inputs).logits)


def wrong_inputs():
    good = features(2, 5)
    return [
        ({**raw(), "image_features": good["image_features"]}, "Pass either pixel_values"),
        ({"pixel_values": raw()["pixel_values"]}, "Both video and audio inputs are required"),
        ({}, "Got neither"),
        ({**good, "audio_features": torch.randn(2, 5, 7)}, "24 .image. and 7 .audio. wide"),
        ({**good, "audio_features": torch.randn(2, 4, 24)}, "over the same segments"),
        ({**good, "labels": torch.full((2, 5), 9)}, "contains 9, but classes go from 0 to 3"),
        ({**good, "labels": torch.zeros(2, dtype=torch.long)}, r"must have the shape \(2, 5\)"),
        ({**good, "labels": torch.zeros(2, 5)}, "class indices"),
        ({**good, "segment_mask": torch.tensor([[True, False, True, True, True]] * 2)}, "row 0"),
        ({**good, "segment_mask": torch.ones(2, 4)}, "segment_mask"),
        ({**raw(), "segment_mask": torch.ones(2, 5)}, r"\(2, 3\), got \(2, 5\)"),
        ({**raw(), "frame_mask": torch.ones(2, 3, 3)}, r"\(2, 3, 2\), got \(2, 3, 3\)"),
        ({**good, "frame_mask": torch.ones(2, 5, 2)}, "cached features have no frames"),
        ({"image_features": torch.zeros(1, 0, 4, 24), "audio_features": torch.zeros(1, 0, 24)}, "over the same"),
        ({"pixel_values": torch.randn(2, 3, 3, 64, 64), "input_values": torch.randn(2, 3, 80)}, "must have the shape"),
        ({**raw(), "input_values": torch.randn(2, 4, 8000)}, r"\(2, 3\), got \(2, 4, 8000\)"),
    ]


@pytest.mark.parametrize(("inputs", "message"), wrong_inputs())
def test_wrong_input_is_named(localizer, inputs, message):
    with pytest.raises(ValueError, match=message):
        localizer(**inputs)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attention_domains": "spatial"}, "must be one of"),
        ({"visual_feature_type": "cls"}, "got 'cls'"),
        ({"supervision": "semi"}, "got 'semi'"),
        ({"window_sizes": ()}, "at least one window"),
        ({"window_sizes": (10, 0)}, ">= 1"),
        ({"window_sizes": (5, 5)}, "twice"),
        ({"window_size": (10,)}, "Did you mean `window_sizes`"),
        ({"hidden_size": 15}, "even, got 15"),
        ({"dropout": 1.5}, "got 1.5"),
        ({"label_smoothing": 1.0}, "got 1.0"),
        ({"label_smoothing": 0.1, "supervision": "weak"}, "needs one label of each segment"),
        ({"contrastive_loss_weight": -1}, "got -1"),
        ({"contrastive_loss_weight": 1, "supervision": "weak"}, "needs one label of each segment"),
        ({"contrastive_temperature": 0}, "above 0, got 0"),
        ({"label_smoothing": 0.1, "problem_type": "multi_label", "id2label": {0: "Bell"}}, "needs one label"),
        ({"min_event_segments": 0}, "at least 1"),
        ({"id2label": {0: "background", 1: "Bell"}}, "must be the last class"),
        ({"id2label": {1: "Bell", 2: "background"}}, "keys 0..1"),
        ({"image_feature_size": 512}, "the model's own tower gives 24"),
        ({"hidden_size": "x"}, "hidden_size"),
        ({"window_sizes": 5}, "window_sizes"),
        ({"event_loss_weight": float("nan")}, "got nan"),
        ({"id2label": ["Bell", "background"]}, "must be a dictionary"),
        ({"id2label": {0: "Bell", 1: "bell", 2: "background"}}, "twice"),
        ({"num_labels": 7}, "names 4 classes"),
        ({"audioclip_config": {"vision_config": {"widht": 8}}}, "Did you mean `width`"),
    ],
)
def test_wrong_configuration_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**values)


@pytest.mark.parametrize(("kind", "unused"), [("dense", 4), ("layer4", 9), ("pooled", 0)])
def test_parameters_that_the_feature_type_never_uses_ask_for_no_gradient(kind, unused, tmp_path):
    model = tiny_localizer(visual_feature_type=kind)
    model.save_pretrained(tmp_path)
    for candidate in (model, AVEClipForLocalization.from_pretrained(tmp_path).train()):
        candidate(**raw(), labels=torch.zeros(2, 3, dtype=torch.long)).loss.backward()
        frozen = [name for name, parameter in candidate.named_parameters() if not parameter.requires_grad]
        assert len(frozen) == unused and all(name.startswith("vision_model.attnpool.") for name in frozen)
        missing = [n for n, p in candidate.named_parameters() if p.requires_grad and p.grad is None and p.numel()]
        assert missing == []


def test_layouts_made_of_fake_tensors_are_not_kept():
    with FakeTensorMode():
        block_layout(101, 3, None, torch.device("cpu"))
    assert type(block_layout(101, 3, None, torch.device("cpu")).slots) is torch.Tensor
