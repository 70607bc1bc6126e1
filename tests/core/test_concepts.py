"""Free labels to classes: every rule of the table, and the shipped table itself."""

import pytest

from ave_clip.core.categories import AVE_CATEGORIES
from ave_clip.core.concepts import ConceptTable, read_concepts, words_of
from ave_clip.core.configuration_ave_clip_mini import AVEClipMiniConfig
from tests.helpers.models import MINI_FOLDER

AUDIO = ["Dog", "Bark", "Bell", "Church bell", "Fly, housefly", "Ratchet, pawl", "Hot water"]
IMAGE = ["beagle", "pug", "boxer", "chime", "church", "fly", "hyena", "hotdog"]
ROWS = [
    {"name": "Bark", "synonyms": "dog|dog barking|puppy", "audio_tags": "Dog|Bark", "image_classes": "beagle..boxer"},
    {"name": "Church bell", "synonyms": "bells", "audio_tags": "Church bell|Bell", "image_classes": "church|chime"},
    {"name": "Water", "synonyms": "", "audio_tags": "Hot water", "image_classes": ""},
]


@pytest.fixture(scope="module")
def table() -> ConceptTable:
    return ConceptTable(ROWS, AUDIO, IMAGE)


@pytest.fixture(scope="module")
def shipped() -> ConceptTable:
    config = AVEClipMiniConfig.from_pretrained(MINI_FOLDER)
    names = [list(part.id2label.values()) for part in (config.audio_config, config.image_config)]
    return ConceptTable(config.concepts, *names)


@pytest.mark.parametrize(
    ("label", "concept", "audio", "image"),
    [
        ("Bark", "Bark", (0, 1), (0, 1, 2)),  # by name
        (" PUPPY ", "Bark", (0, 1), (0, 1, 2)),  # by synonym
        ("the barking dogs", "Bark", (0, 1), (0, 1, 2)),  # in another form and order
        ("church-bells", "Church bell", (3, 2), (4, 3)),
        ("Hyena", "Hyena", (), (6,)),  # an image class only: its sound cannot be told
        ("housefly", "housefly", (4,), ()),  # one of a class's names
        ("flies", "flies", (4,), (5,)),  # in both classifiers
        ("an old church bell far away", "Church bell", (3, 2), (4, 3)),  # its words are within
        ("hot", "hot", (6,), ()),  # within a class's name
        ("hot dogs", "hot dogs", (), (7,)),  # a class of its own in one word, and no dog
        ("house fly", "house fly", (4,), ()),
        ("churchbell", "Church bell", (3, 2), (4, 3)),
        ("hot dog with a barking dog", "Bark", (0, 1), (0, 1, 2)),
    ],
)
def test_label_is_matched(table, label, concept, audio, image) -> None:
    match = table.match(label)
    assert (match.label, match.concept, match.audio_classes, match.image_classes) == (label, concept, audio, image)


@pytest.mark.parametrize(
    ("label", "found"),
    [
        ("PUPPY", None),
        ("the barking dogs", None),
        ("house fly", None),
        ("an old church bell far away", "'Church bell'"),
        ("hot", "'Hot water'"),  # a part of the name of one class
    ],
)
def test_label_that_only_shares_words_is_noted(table, label, found) -> None:
    note = table.note(table.match(label))
    assert note.startswith(f"{label!r} is looked for as {found}:") if found else note == ""


def test_aves_categories_are_no_vague_labels(shipped) -> None:
    assert [match.concept for match in map(shipped.match, AVE_CATEGORIES) if match.is_by_words] == []


@pytest.mark.parametrize(("label", "near"), [("churhc belll", "'church bell'"), ("qqqq", "Use any of the"), ("", "")])
def test_unknown_label_is_an_error_that_lists_near_names(table, label, near) -> None:
    with pytest.raises(ValueError, match="for the label") as error:
        table.match(label)
    assert near in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"name": "Cat", "synonyms": "", "audio_tags": "Meow", "image_classes": ""}, "'Cat' names the class 'Meow'"),
        ({"name": "Dog", "synonyms": "", "audio_tags": "Dog", "image_classes": ""}, "in two rows.*'Bark' and 'Dog'"),
    ],
)
def test_wrong_row_is_an_error(row, message) -> None:
    with pytest.raises(ValueError, match=message):
        ConceptTable([*ROWS, row], AUDIO, IMAGE)


def test_words_do_not_depend_on_form_and_order() -> None:
    assert words_of("Ringing church bells") == words_of("the church bell ringing")
    assert words_of("running") == words_of("runs") and words_of("whistle") == words_of("whistling")
    assert words_of("bus") != words_of("bu") and words_of("glass") == words_of("glasses")


def test_configuration_contains_the_table_of_the_folder() -> None:
    assert list(AVEClipMiniConfig.from_pretrained(MINI_FOLDER).concepts) == read_concepts(MINI_FOLDER / "concepts.csv")


def test_shipped_table_knows_aves_categories_and_150_other_events(shipped) -> None:
    assert [match.concept for match in shipped.concepts[: len(AVE_CATEGORIES)]] == list(AVE_CATEGORIES)
    assert len(shipped.concepts) >= len(AVE_CATEGORIES) + 150
    assert all(match.audio_classes for match in shipped.concepts)


@pytest.mark.parametrize("label", ["cough", "thunder", "helicopter", "Male speech, man speaking", "baby crying"])
def test_a_label_without_an_image_class_has_no_seen_score(shipped, label) -> None:
    match = shipped.match(label)
    assert match.audio_classes and not match.image_classes


@pytest.mark.parametrize("label", ["woman", "a man", "Men", "person", "people", "people talking", "girl"])
def test_people_are_known_by_their_speech_alone(shipped, label) -> None:
    names = AVEClipMiniConfig.from_pretrained(MINI_FOLDER).audio_config.id2label
    match = shipped.match(label)
    assert "Speech" in [names[index] for index in match.audio_classes] and not match.image_classes


@pytest.mark.parametrize(
    ("label", "concept"),
    [
        ("woman singing", "Singing"),
        ("man with a violin", "Violin, fiddle"),
        ("people clapping", "Clapping"),
        ("a child crying", "Crying"),
        ("man talking", "Male speech, man speaking"),
        ("two people talking loudly", "People talking"),
        ("kid goat", "Goat"),
        ("crowd", "Crowd"),
    ],
)
def test_what_people_do_decides_over_who_does_it(shipped, label, concept) -> None:
    assert shipped.match(label).concept == concept


@pytest.mark.parametrize("label", ["man dancing", "woman knitting", "snow man", "person waiting"])
def test_people_who_do_something_unknown_are_not_speech(shipped, label) -> None:
    with pytest.raises(ValueError, match="`ave-clip labels` lists"):
        shipped.match(label)


@pytest.mark.parametrize(
    ("label", "concept"),
    [
        ("dogs barking", "Bark"),
        ("cat", "Cat"),
        ("trains", "Train horn"),
        ("a man playing the violin", "Violin, fiddle"),
        ("alarm clock", "Alarm clock"),
        ("car horns", "Car horn"),
        ("Lightning", "Thunder"),
    ],
)
def test_everyday_labels_find_their_concept(shipped, label, concept) -> None:
    assert shipped.match(label).concept == concept


@pytest.mark.parametrize(
    "label",
    [
        *("cat flap", "horse chestnut", "sea horse", "drum brake", "dog park", "duck tape"),
        *("brake drum", "clothes horse", "train station", "bee sting", "dog collar", "lady bird"),
    ],
)
def test_compound_that_means_another_thing_is_not_its_part(shipped, label) -> None:
    with pytest.raises(ValueError, match="for the label"):
        shipped.match(label)


@pytest.mark.parametrize("label", ["hot dog", "hot dogs", "bell pepper", "bull frog"])
def test_compound_that_is_a_class_is_that_class(shipped, label) -> None:
    assert len(shipped.match(label).image_classes) == 1


@pytest.mark.parametrize(
    ("label", "concept"),
    [
        ("big dog", "Bark"),
        ("dog in the park", "Bark"),
        ("dog barks loudly", "Bark"),
        ("cat and mouse", "Cat"),
        ("horse running away", "Horse"),
        ("violin music", "Violin, fiddle"),
        ("truck passing by", "Truck"),
        ("door bell", "Doorbell"),
        ("motor cycle", "Motorcycle"),
    ],
)
def test_words_around_a_name_do_not_hide_it(shipped, label, concept) -> None:
    assert shipped.match(label).concept == concept


def test_dog_is_every_breed(shipped) -> None:
    assert len(shipped.match("dog").image_classes) == 118
