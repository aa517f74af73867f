from lookwire_server.encoding.labels import Label, LabelSet, Prompts


def test_characters_of_prompts_are_counted_without_making_them() -> None:
    """The count of a set is that of the prompts that it makes: templates filled in, or the label's own."""
    templates = ("a {}", "{} and {{")
    labels = LabelSet((Label("red", ()), Label("{}", ()), Label("own", ("one", "of three", ""))), templates)

    prompts = Prompts([labels]).texts

    assert prompts == ["a red", "red and {{", "a {}", "{} and {{", "one", "of three", ""]
    assert labels.prompt_characters == sum(map(len, prompts))
