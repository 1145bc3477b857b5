#include "models/kinds/fiddle.h"

#include <fmt/format.h>

#include <map>
#include <set>

#include "base/error.h"

namespace reshard {
namespace {

constexpr std::string_view kConfigModule = "fiddle._src.config", kConfigName = "Config",
                           kMetadataName = "BuildableTraverserMetadata", kVersion = "0.0.1";

// -- reading ----------------------------------------------------------------------------------------------------------

class Reader {
 public:
  Reader(const Json& document, const std::string& path) : path_(path) {
    objects_ = Member(document, "objects");
    root_ = Member(document, "root");
    if (!objects_ || !objects_->is_object() || !root_)
      Corrupt("no 'root' and 'objects'", "the document of a fiddle config");
    for (const auto& [key, value] : objects_->items()) by_key_.emplace(key, &value);
  }

  FiddleConfig Read(std::initializer_list<std::string_view> path_in) {
    const Json* node = &Resolve(*root_);
    for (std::string_view argument : path_in) node = &Resolve(Argument(*node, argument));
    Json value = Value(*node, 0);
    if (!value.is_object() || !value.contains("_target_"))
      Corrupt(fmt::format("'{}' is no configured class", fmt::to_string(argument_)), "one");
    FiddleConfig config{value["_target_"], std::move(value)};
    config.arguments.erase("_target_");
    return config;
  }

 private:
  static constexpr size_t kMaxDepth = 64, kMaxValues = 100'000;

  [[noreturn]] void Corrupt(const std::string& found, const std::string& expected) const {
    throw Error(Code::kCorrupt, fmt::format("{}, expected {}", found, expected)).At("reading", path_);
  }

  static const Json* Member(const Json& object, std::string_view key) {
    if (!object.is_object()) return nullptr;
    auto found = object.find(key);
    return found == object.end() ? nullptr : &*found;
  }

  bool HasType(const Json& node, std::string_view type) const {
    const Json* found = Member(node, "type");
    return found && found->is_string() && found->get_ref<const std::string&>() == type;
  }

  // What references lead to.
  const Json& Resolve(const Json& node) const {
    const Json* at = &node;
    for (size_t step = 0; HasType(*at, "ref"); ++step) {
      const Json* key = Member(*at, "key");
      if (!key || !key->is_string()) Corrupt("a reference without a key", "one");
      auto found = by_key_.find(key->get_ref<const std::string&>());
      if (found == by_key_.end()) Corrupt(fmt::format("no object '{}'", key->get<std::string>()), "one");
      if (step > kMaxDepth) Corrupt("references that lead around in a circle", "them to end");
      at = found->second;
    }
    return *at;
  }

  // The dotted name of a pyref.
  std::string Name(const Json& node) const {
    const Json *module = Member(node, "module"), *name = Member(node, "name");
    if (!HasType(node, "pyref") || !module || !module->is_string() || !name || !name->is_string())
      Corrupt("a class or function without module and name", "both");
    return module->get<std::string>() + "." + name->get<std::string>();
  }

  const Json& Items(const Json& node) const {
    const Json* items = Member(node, "items");
    if (!items || !items->is_array()) Corrupt("an object without 'items'", "a list of them");
    for (const Json& item : *items)
      if (!item.is_array() || item.size() != 2) Corrupt("an item that is no pair", "pairs of path and value");
    return *items;
  }

  bool IsConfig(const Json& node) const {
    const Json* type = Member(node, "type");
    return type && type->is_object();
  }

  // The class of a configured object and the names of its arguments; nothing where its metadata are not those of one
  // (lists and dicts have none such).
  struct Buildable {
    std::string target;
    std::vector<std::string> arguments;
  };
  std::optional<Buildable> BuildableOf(const Json& node) const {
    const Json* reference = Member(node, "metadata");
    if (!reference || reference->is_null()) return std::nullopt;
    const Json& metadata = Resolve(*reference);
    const Json* type = Member(metadata, "type");
    if (!type || !type->is_object() || !Name(*type).ends_with(kMetadataName)) return std::nullopt;
    const Json& items = Items(metadata);
    if (items.size() < 2) Corrupt("metadata without class and arguments", "both");
    Buildable buildable{Name(Resolve(items[0][1])), {}};
    for (const Json& name : Items(Resolve(items[1][1]))) {
      if (!name[1].is_string()) Corrupt("an argument's name that is no text", "a text");
      buildable.arguments.push_back(name[1]);
    }
    if (buildable.arguments.size() != Items(node).size())
      Corrupt(fmt::format("{} values for {} arguments of {}", Items(node).size(), buildable.arguments.size(),
                          buildable.target),
              "one for each");
    return buildable;
  }

  const Json& Argument(const Json& node, std::string_view argument) {
    argument_ = argument;
    if (IsConfig(node)) {
      if (auto buildable = BuildableOf(node)) {
        for (size_t i = 0; i < buildable->arguments.size(); ++i)
          if (buildable->arguments[i] == argument) return Items(node)[i][1];
        throw Error(Code::kMismatch, fmt::format("{} has no argument '{}', expected one", buildable->target, argument))
            .At("reading", path_);
      }
    }
    throw Error(Code::kUnsupported,
                fmt::format("what should have the argument '{}' is a pickle or no class, expected a configured class; "
                            "a model.yaml beside it would be read instead",
                            argument))
        .At("reading", path_);
  }

  // A dict's keys are its metadata.
  Json Dict(const Json& node, size_t depth) {
    Json dict = Json::object();
    const Json* metadata = Member(node, "metadata");
    const Json keys = metadata ? Value(*metadata, depth + 1) : Json();
    const Json& items = Items(node);
    if (!keys.is_array() || keys.size() != items.size())
      Corrupt("a dict whose keys are not as many as its items", "them to be");
    for (size_t i = 0; i < keys.size(); ++i)
      dict[keys[i].is_string() ? keys[i].get<std::string>() : keys[i].dump()] = Value(items[i][1], depth + 1);
    return dict;
  }

  Json Value(const Json& reference, size_t depth) {
    if (depth > kMaxDepth) Corrupt("values within more than 64 others", "fewer");
    if (++values_ > kMaxValues)
      throw Error(Code::kUnsupported, fmt::format("more than {} values, expected fewer", kMaxValues))
          .At("reading", path_);
    const Json& node = Resolve(reference);
    if (!node.is_object()) return node;
    if (HasType(node, "leaf")) {
      const Json* value = Member(node, "value");
      if (!value || value->is_structured()) Corrupt("a leaf without a value", "one");
      return *value;
    }
    if (HasType(node, "pyref")) return Name(node);
    if (!IsConfig(node)) Corrupt("a value of an unknown type", "a leaf, a reference, a name or an object");
    const std::string type = Name(node["type"]);
    if (type == "builtins.dict") return Dict(node, depth);
    if (auto buildable = BuildableOf(node)) {
      Json config = Json::object();
      config["_target_"] = buildable->target;
      for (size_t i = 0; i < buildable->arguments.size(); ++i)
        config[buildable->arguments[i]] = Value(Items(node)[i][1], depth + 1);
      return config;
    }
    Json list = Json::array();  // and what else has items: tuples, sets, pickles
    for (const Json& item : Items(node)) list.push_back(Value(item[1], depth + 1));
    return list;
  }

  const std::string& path_;
  const Json *objects_ = nullptr, *root_ = nullptr;
  std::map<std::string, const Json*> by_key_;
  std::string_view argument_ = "<root>";
  size_t values_ = 0;
};

// -- writing ----------------------------------------------------------------------------------------------------------

// "MistralConfig7B" -> "mistral_config7_b", as fiddle names its objects.
std::string SnakeCase(std::string_view name) {
  auto upper = [](char c) { return c >= 'A' && c <= 'Z'; };
  std::string snake;
  for (size_t i = 0; i < name.size(); ++i) {
    if (i > 0 && upper(name[i]) && !upper(name[i - 1]) && name[i - 1] != '_') snake += '_';
    snake += upper(name[i]) ? static_cast<char>(name[i] - 'A' + 'a') : name[i];
  }
  return snake;
}

class Writer {
 public:
  Json Document(const FiddleValue& root) {
    Json reference = Serialize(root, "<root>");
    return {{"root", reference}, {"objects", objects_}, {"refcounts", refcounts_}, {"version", kVersion}};
  }

 private:
  static Json Name(std::string_view module, std::string_view name) {
    return {{"type", "pyref"}, {"module", module}, {"name", name}};
  }

  Json Store(std::string_view hint, Json object) {
    std::string key;
    for (int i = 1; key.empty() || objects_.contains(key); ++i) key = fmt::format("{}_{}", SnakeCase(hint), i);
    objects_[key] = std::move(object);
    refcounts_[key] = 1;
    return {{"type", "ref"}, {"key", key}};
  }

  Json Tuple(const std::vector<std::string>& texts) {
    Json items = Json::array();
    for (size_t i = 0; i < texts.size(); ++i) items.push_back({fmt::format("Index(index={})", i), texts[i]});
    return {{"type", Name("builtins", "tuple")}, {"items", items}, {"metadata", nullptr}};
  }

  Json EmptyDict() { return {{"type", Name("builtins", "dict")}, {"items", Json::array()}, {"metadata", Tuple({})}}; }

  Json Metadata(const FiddleValue& config) {
    std::vector<std::string> names;
    for (const auto& [name, value] : config.items) names.push_back(name);
    Json items = Json::array();
    auto add = [&](std::string_view field, Json value) {
      items.push_back({fmt::format("Attr(name='{}')", field), std::move(value)});
    };
    add("fn_or_cls", Name(config.module, config.name));
    add("argument_names", Store("tuple", Tuple(names)));
    add("argument_tags", Store("dict", EmptyDict()));
    add("argument_history", Store("dict", EmptyDict()));
    const Json type = Name(kConfigModule, kMetadataName);
    return Store(kMetadataName, {{"type", type}, {"items", items}, {"metadata", type}});
  }

  Json Serialize(const FiddleValue& value, const std::string& at) {
    Json paths = Json::array({at});
    switch (value.type) {
      case FiddleValue::Type::kLeaf:
        return {{"type", "leaf"}, {"value", value.leaf}, {"paths", paths}};
      case FiddleValue::Type::kName: {
        Json name = Name(value.module, value.name);
        name["paths"] = paths;
        return name;
      }
      case FiddleValue::Type::kEmptyDict: {
        Json dict = EmptyDict();
        dict["paths"] = paths;
        return Store("dict", std::move(dict));
      }
      case FiddleValue::Type::kList:
      case FiddleValue::Type::kConfig:
        break;
    }
    const bool is_list = value.type == FiddleValue::Type::kList;
    Json items = Json::array();
    for (size_t i = 0; i < value.items.size(); ++i) {
      const auto& [name, item] = value.items[i];
      items.push_back(is_list ? Json{fmt::format("Index(index={})", i), Serialize(item, fmt::format("{}[{}]", at, i))}
                              : Json{fmt::format("Attr(name='{}')", name), Serialize(item, at + "." + name)});
    }
    Json type = is_list ? Name("builtins", "list") : Name(kConfigModule, kConfigName);
    Json metadata = is_list ? Json(nullptr) : Metadata(value);
    return Store(is_list ? "list" : value.name,
                 {{"type", type}, {"items", items}, {"metadata", metadata}, {"paths", paths}});
  }

  Json objects_ = Json::object(), refcounts_ = Json::object();
};

}  // namespace

FiddleConfig ReadFiddle(const Json& document, const std::string& path,
                        std::initializer_list<std::string_view> path_in) {
  return Reader(document, path).Read(path_in);
}

FiddleValue FiddleValue::Leaf(Json value) { return {.leaf = std::move(value)}; }

FiddleValue FiddleValue::Name(std::string module, std::string name) {
  return {.type = Type::kName, .module = std::move(module), .name = std::move(name)};
}

FiddleValue FiddleValue::List(const Json& values) {
  FiddleValue list{.type = Type::kList};
  for (const Json& value : values) list.items.emplace_back("", Leaf(value));
  return list;
}

FiddleValue FiddleValue::EmptyDict() { return {.type = Type::kEmptyDict}; }

FiddleValue FiddleValue::Config(std::string module, std::string name) {
  return {.type = Type::kConfig, .module = std::move(module), .name = std::move(name)};
}

FiddleValue& FiddleValue::Add(std::string argument, FiddleValue value) {
  items.emplace_back(std::move(argument), std::move(value));
  return *this;
}

Json FiddleDocument(const FiddleValue& root) { return Writer().Document(root); }

}  // namespace reshard
