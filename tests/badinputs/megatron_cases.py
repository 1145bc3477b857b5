"""Bad and odd contexts of NeMo 2, and configs, arguments and trackers of Megatron checkpoints."""
import json
import pickle
import pickletools
import shutil

from cases import bad, valid
from tiny_model import mcore_fields, write_torch_zip, yaml_lines

NEMO2, MEGATRON = "NeMo 2", "Megatron"
ITERATION, TRACKER = "iter_0000100", "latest_checkpointed_iteration.txt"


def nemo2(code, *says, arguments=()):
    return bad(NEMO2, "nemo2", code, *says, arguments=arguments)


def megatron(code, *says, arguments=()):
    return bad(MEGATRON, "megatron", code, *says, arguments=arguments)


def edit_io(folder, change):
    path = folder / "context" / "io.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def set_field(folder, name, value):
    """Gives the model's config a field, or another value of one."""
    def change(document):
        names, config = document["objects"]["llama_config_1_names"], document["objects"]["llama_config_1"]
        for item in config["items"]:
            if item[0] == f"Attr(name='{name}')":
                item[1] = {"type": "leaf", "value": value}
                return
        names["items"].append(["", name])
        config["items"].append(["", {"type": "leaf", "value": value}])
    edit_io(folder, change)


def write_model_yaml(folder, text):
    (folder / "context" / "model.yaml").write_text(text)


MODEL_YAML = "_target_: nemo.collections.llm.gpt.model.llama.LlamaModel\nconfig:\n  _target_: nemo.collections.llm.gpt.model.llama.LlamaConfig\n"


# ---------------------------------------------------------------- contexts

@nemo2(4, "context", r"no context")
def context_missing(folder):
    """weights without a context"""
    shutil.rmtree(folder / "context")


@nemo2(4, "context", r"model\.yaml", r"io\.json")
def context_empty(folder):
    """a context with neither model.yaml nor io.json"""
    (folder / "context" / "io.json").rename(folder / "context" / "other.json")


@nemo2(4, r"io\.json", "JSON")
def io_json_cut_off(folder):
    """io.json cut off in the middle"""
    path = folder / "context" / "io.json"
    path.write_text(path.read_text()[:500])


@nemo2(4, r"io\.json", "objects")
def io_json_is_no_fiddle(folder):
    """an io.json that is another document"""
    (folder / "context" / "io.json").write_text('{"a": 1}')


@nemo2(4, r"io\.json", "llama_model_1")
def io_json_refers_to_nothing(folder):
    """an io.json without the object of the model"""
    edit_io(folder, lambda document: document["objects"].pop("llama_model_1"))


@nemo2(4, r"io\.json", "circle")
def io_json_refers_around(folder):
    """an io.json whose model is a reference to itself"""
    edit_io(folder, lambda document: document["objects"].update(llama_model_1={"type": "ref", "key": "llama_model_1"}))


@nemo2(4, r"io\.json", "within")
def io_json_holds_itself(folder):
    """an io.json whose config has itself as a field"""
    def change(document):
        document["objects"]["llama_config_1"]["items"][0][1] = {"type": "ref", "key": "llama_config_1"}
    edit_io(folder, change)


@nemo2(5, r"io\.json", "values")
def io_json_grows(folder):
    """an io.json of lists of lists that are a billion values"""
    def change(document):
        pyref = {"type": "pyref", "module": "builtins", "name": "list"}
        for level in range(9):
            below = {"type": "ref", "key": f"list_{level + 1}"} if level < 8 else {"type": "leaf", "value": 1}
            document["objects"][f"list_{level}"] = {"type": pyref, "items": [["", below]] * 10, "metadata": None}
        document["objects"]["llama_config_1"]["items"][0][1] = {"type": "ref", "key": "list_0"}
    edit_io(folder, change)


@nemo2(4, r"io\.json", "arguments")
def io_json_has_too_few_values(folder):
    """an io.json with fewer values than names of arguments"""
    edit_io(folder, lambda document: document["objects"]["llama_config_1"]["items"].pop())


@nemo2(5, r"io\.json", "pickle")
def io_json_model_is_a_pickle(folder):
    """an io.json whose model is a pickle beside it"""
    def change(document):
        model = {"type": "pyref", "module": "nemo.collections.llm.gpt.model.llama", "name": "LlamaModel"}
        document["objects"]["llama_model_1"] = {"type": model, "items": [["IdentityElement()", "0f0e"]], "metadata": None}
    edit_io(folder, change)


@nemo2(5, r"io\.json", "MyConfig")
def io_json_of_an_unknown_class(folder):
    """an io.json whose config is a class of the user's own"""
    edit_io(folder, lambda document: document["objects"]["llama_config_1_metadata"]["items"][0][1].update(name="MyConfig"))


@nemo2(6, r"100,?000 layers", "2")
def layers_by_the_context_alone(folder):
    """100,000 layers in the context and two in the files"""
    set_field(folder, "num_layers", 100_000)


@nemo2(4, "num_layers", "-2")
def negative_layers(folder):
    """num_layers -2 in io.json"""
    set_field(folder, "num_layers", -2)


@nemo2(6, "hidden_size|shape", "32")
def hidden_size_of_another_model(folder):
    """a hidden size of 32 for weights of 16"""
    set_field(folder, "hidden_size", 32)


@nemo2(6, "vocabulary", "12", "11")
def vocabulary_that_contradicts_the_user(folder):
    """a vocab_size of 12, which is not that of --vocab_size nor padded to it"""
    set_field(folder, "vocab_size", 12)


@nemo2(6, r"mlp\.router\.weight", "missing", r"\b8\b")
def experts_in_the_context(folder):
    """a context with 8 experts"""
    set_field(folder, "num_moe_experts", 8)


@nemo2(5, "normalization", "LayerNorm", "RMSNorm")
def layer_norm_in_the_context(folder):
    """a context with another norm"""
    set_field(folder, "normalization", "LayerNorm")


@nemo2(6, "scale_factor", "seq_len_interpolation_factor")
def two_rope_scalings(folder):
    """a context with two rope scalings"""
    set_field(folder, "scale_factor", 8.0)
    set_field(folder, "seq_len_interpolation_factor", 2.0)


@nemo2(4, r"model\.yaml", "config")
def model_yaml_without_config(folder):
    """a model.yaml without the config of a model"""
    write_model_yaml(folder, "_target_: nemo.Model\n")


@nemo2(4, r"model\.yaml", "tag")
def model_yaml_with_a_python_tag(folder):
    """a model.yaml with a tag that would call a function"""
    write_model_yaml(folder, MODEL_YAML + "  hidden_size: !!python/object/apply:os.system ['true']\n")


@nemo2(4, r"model\.yaml", "hidden_size")
def model_yaml_with_a_text_for_a_size(folder):
    """a model.yaml whose hidden_size is a text"""
    write_model_yaml(folder, MODEL_YAML + yaml_lines({**mcore_fields(), "hidden_size": "many"}, "  "))


@nemo2(5, "adapter")
def weights_of_an_adapter(folder):
    """weights that are a PEFT adapter"""
    (folder / "weights" / "adapter_metadata.json").write_text("{}")


@nemo2(4, r"metadata\.json")
def unfinished_nemo2(folder):
    """weights without metadata.json, which is written last"""
    (folder / "weights" / "metadata.json").unlink()


@valid(NEMO2, "nemo2")
def context_with_pickles(folder):
    """pickles in the context, which are never read"""
    (folder / "context" / "0f0e").write_bytes(b"\x80\x04cos\nsystem\n(X\x04\x00\x00\x00truetR.")


@valid(NEMO2, "nemo2")
def model_yaml_beside_io_json(folder):
    """a model.yaml of a class of the user's own, which has every value"""
    text = MODEL_YAML.replace("LlamaConfig", "MyConfig") + "  activation_func:\n    _target_: torch.nn.functional.silu\n    _call_: false\n"
    write_model_yaml(folder, text + yaml_lines(mcore_fields(), "  "))


@valid(NEMO2, "nemo2")
def weights_beside_the_context(folder):
    """weights beside the context, as the first releases have them"""
    for path in (folder / "weights").iterdir():
        path.rename(folder / path.name)
    (folder / "weights").rmdir()


# ---------------------------------------------------------------- trackers

@megatron(4, TRACKER, "last")
def tracker_missing(folder):
    """an iteration without the file that names it, which is written last"""
    (folder / TRACKER).unlink()


@megatron(4, TRACKER, "latest")
def tracker_is_no_number(folder):
    """a tracker with a word"""
    (folder / TRACKER).write_text("latest")


@megatron(4, TRACKER, "-1")
def tracker_is_negative(folder):
    """a tracker with -1"""
    (folder / TRACKER).write_text("-1")


@megatron(4, TRACKER, "iter_0000200")
def tracker_names_another_iteration(folder):
    """a tracker that names an iteration which is not there"""
    (folder / TRACKER).write_text("200")


@megatron(4, TRACKER)
def tracker_is_a_book(folder):
    """a tracker of 1 MB"""
    (folder / TRACKER).write_text("1" * 1_000_000)


@megatron(5, "mp_rank_00")
def old_ranks(folder):
    """an iteration with the files of old ranks"""
    (folder / ITERATION / "mp_rank_00").mkdir()


# ---------------------------------------------------------------- run_config.yaml and arguments

def edit_run(folder, old, new):
    path = folder / ITERATION / "run_config.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def arguments(**changes):
    """The pickle of a dict with a Namespace of arguments; values may be pickled already."""
    fields = {key: value for key, value in mcore_fields().items()
              if key not in ("layernorm_epsilon", "share_embeddings_and_output_weights", "gated_linear_unit", "vocab_size")}
    fields |= {"norm_epsilon": 1e-05, "swiglu": True, "group_query_attention": True, "padded_vocab_size": 11,
               "untie_embeddings_and_output_weights": True, **changes}
    state = b"".join(text(key) + (value if isinstance(value, bytes) else pickletools.optimize(pickle.dumps(value, 2))[2:-1])
                     for key, value in fields.items())
    return b"\x80\x02}(" + text("args") + b"cargparse\nNamespace\n)\x81}(" + state + b"ubu."


def common(folder, content):
    """The arguments alone say what the model is."""
    (folder / ITERATION / "run_config.yaml").unlink()
    write_torch_zip(folder / ITERATION / "common.pt", content)


@megatron(4, ITERATION, r"run_config\.yaml", r"common\.pt")
def nothing_says_what_the_model_is(folder):
    """an iteration with neither run_config.yaml nor common.pt"""
    (folder / ITERATION / "run_config.yaml").unlink()


@megatron(4, r"run_config\.yaml", "model")
def run_config_without_model(folder):
    """a run_config.yaml without a model"""
    (folder / ITERATION / "run_config.yaml").write_text("train: {}\n")


@megatron(4, r"run_config\.yaml", "tag")
def run_config_with_a_python_tag(folder):
    """a run_config.yaml with a tag that would call a function"""
    edit_run(folder, "hidden_size: 16", "hidden_size: !!python/object/apply:os.system ['true']")


@megatron(6, "layers", "3", "2")
def layers_by_the_run_config(folder):
    """a run_config.yaml of three layers, of which two are stored"""
    edit_run(folder, "num_layers: 2", "num_layers: 3")


@megatron(6, "num_attention_heads", "3", "2")
def heads_that_do_not_divide(folder):
    """a run_config.yaml of 3 heads in 2 query groups"""
    edit_run(folder, "num_attention_heads: 4", "num_attention_heads: 3")


@megatron(5, "position_embedding_type", "yarn")
def yarn_in_the_run_config(folder):
    """a run_config.yaml with yarn positions"""
    edit_run(folder, '"rope"', '"yarn"')


@megatron(5, "activation_func", "gelu")
def gelu_in_the_run_config(folder):
    """a run_config.yaml with another activation"""
    edit_run(folder, "activation_func: silu", "activation_func: gelu")


@megatron(4, r"common\.pt", "args")
def common_without_arguments(folder):
    """a common.pt without arguments"""
    common(folder, b"\x80\x02}.")


@megatron(4, r"common\.pt", "args", "namespace")
def arguments_of_another_class(folder):
    """a common.pt whose arguments would be made by os.system"""
    common(folder, b"\x80\x02}(" + text("args") + b"cos\nsystem\n(" + text("true") + b"tRu.")


@megatron(4, r"common\.pt")
def common_cut_off(folder):
    """a common.pt cut off in the middle"""
    common(folder, arguments())
    path = folder / ITERATION / "common.pt"
    path.write_bytes(path.read_bytes()[:700])


@megatron(6, "padded_vocab_size", "128", "11")
def padded_vocabulary_of_another_model(folder):
    """arguments with a padded vocabulary that is not the stored one"""
    common(folder, arguments(padded_vocab_size=128))


@megatron(4, "num_layers", "missing")
def arguments_without_layers(folder):
    """arguments whose number of layers is an object"""
    common(folder, arguments(num_layers=b"cmy.module\nLayers\n)\x81}b"))


@megatron(5, "activation_func", "squared_relu")
def squared_relu_in_the_arguments(folder):
    """arguments with another activation"""
    common(folder, arguments(swiglu=False, squared_relu=True))


@valid(MEGATRON, "megatron")
def arguments_with_objects(folder):
    """arguments that are objects, calls and classes: inert, and none of the model's"""
    call = b"cos\nsystem\n(" + text("touch trace") + b"tR"
    common(folder, arguments(timers=call, dtype=b"ctorch\nbfloat16\n", backend=b"cmegatron.core.enums\nBackend\nK\x05\x85R"))


@valid(MEGATRON, "megatron")
def run_config_with_builder(folder):
    """a run_config.yaml that nests the transformer's fields"""
    outer = {k: v for k, v in mcore_fields().items() if k in ("vocab_size", "seq_length", "position_embedding_type", "share_embeddings_and_output_weights", "rotary_base")}
    inner = {k: v for k, v in mcore_fields().items() if k not in outer}
    (folder / ITERATION / "run_config.yaml").write_text(
        "model:\n  _builder_: megatron.bridge.models.gpt.GPTModelBuilder\n  transformer:\n    activation_func: silu\n"
        + yaml_lines(inner, "    ") + yaml_lines(outer, "  "))


@valid(MEGATRON, "megatron")
def tracker_of_a_release(folder):
    """a tracker that says release, and blanks"""
    (folder / ITERATION).rename(folder / "release")
    (folder / TRACKER).write_text("release \n")


@valid(MEGATRON, "megatron")
def tracker_of_iteration_0(folder):
    """a tracker of 0, as Megatron-Bridge writes it of what it imports"""
    (folder / ITERATION).rename(folder / "iter_0000000")
    (folder / TRACKER).write_text("0")
