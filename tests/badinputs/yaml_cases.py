"""Bad and odd model_config.yaml files."""
from cases import bad, valid

GROUP = "YAML"
FILE = r"model_config\.yaml"


def broken(code, *says):
    return bad(GROUP, "nemo", code, FILE, *says)


def edit(folder, old, new):
    path = folder / "model_config.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def append(folder, text):
    with (folder / "model_config.yaml").open("a") as file:
        file.write(text)


def layers(folder, value):
    edit(folder, "num_layers: 2\n", f"num_layers: {value}\n")


@broken(6, r"100,?000 layers", r"2")
def layers_by_the_config_alone(folder):
    """100,000 layers in model_config.yaml and two in the files"""
    layers(folder, 100_000)


@broken(4, r"nodes")
def nodes_by_aliases(folder):
    """900,000 nodes behind aliases, in 10 kB"""
    append(folder, "bomb:\n  a: &a [" + ", ".join("x" * 300) + "]\n" + f"  b: [{', '.join(['*a'] * 3000)}]\n")


@broken(4)
def file_missing(folder):
    """no model_config.yaml"""
    (folder / "model_config.yaml").unlink()


@broken(4)
def file_empty(folder):
    """file of 0 bytes"""
    (folder / "model_config.yaml").write_text("")


@broken(4, r"mapping|map")
def file_is_a_list(folder):
    """list at the top level"""
    (folder / "model_config.yaml").write_text("- a\n- b\n")


@broken(4, r"document")
def two_documents(folder):
    """two documents"""
    append(folder, "---\nnum_layers: 3\n")


@broken(4)
def not_utf8(folder):
    """text that is not UTF-8"""
    with (folder / "model_config.yaml").open("ab") as file:
        file.write(b"note: \xff\xfe\n")


@broken(4, r"alias|anchor")
def anchor_bomb(folder):
    """aliases that expand to a billion nodes"""
    append(folder, "a0: &a0 [x, x]\n" + "".join(
        f"a{level}: &a{level} [{', '.join(['*a' + str(level - 1)] * 10)}]\n" for level in range(1, 10)))


@broken(4, r"alias|anchor|zzz")
def alias_without_anchor(folder):
    """alias of an anchor that is not there"""
    append(folder, "note: *zzz\n")


@broken(4, r"nest|depth|deep")
def nested_10000_deep(folder):
    """10,000 nested lists"""
    append(folder, "note: " + "[" * 10_000 + "]" * 10_000 + "\n")


@broken(4, r"nest|depth|deep")
def nested_1000_deep_by_indentation(folder):
    """mappings indented 1,000 deep"""
    append(folder, "note:\n" + "".join(" " * level + "a:\n" for level in range(1, 1_000)))


@broken(4, r"tag", r"python/object")
def python_tag(folder):
    """tag `!!python/object/apply`"""
    append(folder, "note: !!python/object/apply:os.system ['true']\n")


@broken(4, r"num_layers", r"duplicate|twice|two|again|second")
def key_twice(folder):
    """one key twice"""
    append(folder, "num_layers: 3\n")


@broken(4, r"\btab|indent|line \d+")
def tab_indentation(folder):
    """indentation with a tab"""
    edit(folder, "  library: huggingface\n", "\tlibrary: huggingface\n")


@broken(4, r"large|size|bytes|limit")
def scalar_of_1_gb(folder):
    """scalar of 1 GB: refused by the size of the file"""
    append(folder, "note: x")
    with (folder / "model_config.yaml").open("ab") as file:
        file.truncate(1 << 30)


@broken(4, r"num_layers", r"nan")
def size_is_nan(folder):
    """`num_layers: .nan`"""
    layers(folder, ".nan")


@broken(4, r"num_layers", r"inf")
def size_is_infinite(folder):
    """`num_layers: .inf`"""
    layers(folder, ".inf")


@broken(4, r"num_layers", r"integer|number|string")
def size_is_a_string(folder):
    """`num_layers: "2"`"""
    layers(folder, '"2"')


@broken(4, r"num_layers", r"2\.5")
def size_is_a_fraction(folder):
    """`num_layers: 2.5`"""
    layers(folder, "2.5")


@broken(4, r"num_layers", r"12:00:00")
def size_is_a_time(folder):
    """`num_layers: 12:00:00`, which is not 43200"""
    layers(folder, "12:00:00")


@broken(4, r"num_layers")
def size_beyond_64_bits(folder):
    """`num_layers: 2^70`"""
    layers(folder, 2**70)


@broken(4, r"num_layers", r"-2")
def size_negative(folder):
    """`num_layers: -2`"""
    layers(folder, -2)


@broken(4, r"num_layers")
def size_is_a_map(folder):
    """mapping where a number belongs"""
    layers(folder, "{a: 1}")


@broken(4, r"num_attention_heads")
def heads_missing(folder):
    """no `num_attention_heads`"""
    edit(folder, "num_attention_heads: 4\n", "")


# ---------------------------------------------------------------- valid

@valid(GROUP, "nemo")
def below_model(folder):
    """everything below a top-level `model:`"""
    path = folder / "model_config.yaml"
    path.write_text("model:\n" + "".join(f"  {line}\n" for line in path.read_text().splitlines()))


@valid(GROUP, "nemo")
def comments_and_document_marks(folder):
    """comments, a document start and a document end"""
    path = folder / "model_config.yaml"
    text = path.read_text().replace("num_layers: 2", "num_layers: 2  # two")
    path.write_text(f"# saved by hand\n---\n{text}...\n")


@valid(GROUP, "nemo")
def line_ends_of_windows(folder):
    """lines that end in CR LF"""
    path = folder / "model_config.yaml"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


@valid(GROUP, "nemo")
def unknown_keys(folder):
    """keys that no loader knows, `_target_` among them: data, never code"""
    append(folder, "note: [1, {a: b}]\nhook:\n  _target_: os.system\n  command: 'true'\n")


@valid(GROUP, "nemo")
def anchor_and_alias(folder):
    """an anchor and two aliases"""
    append(folder, "sizes: &sizes [1, 2]\nmore: *sizes\nagain: *sizes\n")
