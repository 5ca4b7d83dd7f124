"""The tiny benchmark that ships: it has the shape of the large one."""

from prompt_serve.research.iconbench.sample import sample_suite
from prompt_serve.training.data.few_shot import few_shot


def test_every_task_can_be_learned_and_halved() -> None:
    suite = sample_suite()

    for name in suite.datasets:
        split = suite.load(name).split
        for images in split.parts.values():
            assert set(images.by_label()) == set(range(len(split.class_names)))
            assert all(item.path.is_file() for item in images.items)
        drawn = few_shot(split, shots=16, seed=1)
        assert len(drawn.train) == 16 * len(split.class_names)
        assert drawn.val is not None
    assert [len(suite.load(name).split.class_names) for name in suite.datasets] == [12, 5, 7]


def test_styles_that_are_tested_on_are_never_learned_from() -> None:
    everything = sample_suite().load("everything")
    assert everything.split.test is not None

    def styles(paths: object) -> set[str]:
        return {item.path.name.partition("__")[0] for item in paths.items}  # type: ignore[attr-defined]  # an ImageSet

    assert styles(everything.split.train) == {"noto", "openmoji", "fluent-emoji-flat"}
    assert styles(everything.split.test) == {"emojione"}
    assert {name: styles(images) for name, images in everything.domains.items()} == {
        "twemoji": {"twemoji"},
        "emojione": {"emojione"},
    }
    labels = {
        (item.path.parent.name, everything.split.class_names[item.label])
        for item in everything.split.train.items
    }
    assert all(folder == name for folder, name in labels)
