#include "launch/cluster_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <regex>

#include "base/bytes.h"
#include "base/error.h"
#include "base/yaml.h"

namespace reshard {
namespace {

constexpr uint64_t kMaxConfig = 4 * kMiB;

Error Bad(const std::string& key, const std::string& text) {
  return Error(Code::kCorrupt, fmt::format("key '{}': {}", key, text));
}

const char* TypeName(const Yaml& node) {
  return node.type == Yaml::Type::kScalar     ? "a single value"
         : node.type == Yaml::Type::kSequence ? "a list"
                                              : "a mapping";
}

bool IsNull(const Yaml& node) { return node.type == Yaml::Type::kScalar && !node.quoted && node.text == "null"; }

// A key that stands there without a value is as good as absent.
const Yaml* Find(const Yaml& mapping, const char* key, Yaml::Type type) {
  const Yaml* node = mapping.Find(key);
  if (!node || IsNull(*node)) return nullptr;
  if (node->type != type) {
    const Yaml wanted{type};
    throw Bad(key, fmt::format("found {}, expected {}", TypeName(*node), TypeName(wanted)));
  }
  return node;
}

std::string TextOf(const Yaml& mapping, const char* key) {
  const Yaml* node = Find(mapping, key, Yaml::Type::kScalar);
  return node ? node->text : "";
}

bool FlagOf(const Yaml& mapping, const char* key) {
  const Yaml* node = Find(mapping, key, Yaml::Type::kScalar);
  if (!node) return false;
  const Json value = YamlValue(*node);
  if (!value.is_boolean()) throw Bad(key, fmt::format("found '{}', expected true or false", node->text));
  return value.get<bool>();
}

std::vector<std::string> ListOf(const Yaml& mapping, const char* key) {
  std::vector<std::string> list;
  const Yaml* node = Find(mapping, key, Yaml::Type::kSequence);
  if (!node) return list;
  for (const Yaml& item : node->items) {
    if (item.type != Yaml::Type::kScalar)
      throw Bad(key, fmt::format("an entry is {}, expected a text", TypeName(item)));
    list.push_back(item.text);
  }
  return list;
}

// $NAME and ${NAME}.
std::string Expand(const std::string& text, const Environment& environment) {
  static const std::regex kVariable(R"(\$(\w+)|\$\{(\w+)\})");
  std::string expanded;
  auto rest = text.begin();
  for (std::sregex_iterator match(text.begin(), text.end(), kVariable), end; match != end; ++match) {
    const std::string name = (*match)[1].matched ? (*match)[1].str() : (*match)[2].str();
    const std::optional<std::string> value = environment(name);
    if (!value)
      throw Error(Code::kNotFound,
                  fmt::format("'{}' needs the environment variable {}, which is not set; set it", text, name));
    expanded.append(rest, (*match)[0].first);
    expanded += *value;
    rest = (*match)[0].second;
  }
  return expanded.append(rest, text.end());
}

std::string WithoutSlash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

// A side of a mount; {NAME} whole is a variable.
std::string SideOf(const std::string& text, const Environment& environment) {
  const bool variable = text.size() > 2 && text.front() == '{' && text.back() == '}';
  return WithoutSlash(variable ? Expand("$" + text, environment) : text);
}

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts(1);
  for (char c : text) c == separator ? parts.emplace_back() : parts.back() += c, void();
  return parts;
}

std::string Trimmed(const std::string& text) {
  const size_t begin = text.find_first_not_of(" \t"), end = text.find_last_not_of(" \t");
  return begin == text.npos ? "" : text.substr(begin, end - begin + 1);
}

Mount ParseMount(const std::string& entry, const Environment& environment) {
  const std::vector<std::string> fields = Split(Expand(entry, environment), ':');
  auto refuse = [&](const std::string& what) {
    return Error(Code::kInvalidArgument, fmt::format("the mount '{}' {}, expected SRC:DST", entry, what));
  };
  if (fields.size() < 2 || fields.size() > 3) throw refuse(fmt::format("has {} colons", fields.size() - 1));
  Mount mount{SideOf(fields[0], environment), SideOf(fields[1], environment), fields.size() == 3 ? fields[2] : ""};
  if (mount.source.empty() || mount.destination.empty()) throw refuse("has an empty side");
  if (mount.destination[0] != '/') throw refuse("has a destination that does not begin with '/'");
  if (!mount.flags.empty() && mount.flags != "ro" && mount.flags != "rw")
    throw refuse(fmt::format("ends in ':{}', which is neither ro nor rw", mount.flags));
  return mount;
}

void SetVariable(ClusterConfig& config, const std::string& name, const std::string& value) {
  static const std::regex kName(R"([A-Za-z_]\w*)");
  if (!std::regex_match(name, kName)) throw Bad("env_vars", fmt::format("'{}' is no name of a variable", name));
  std::erase_if(config.variables, [&](const auto& other) { return other.first == name; });
  config.variables.emplace_back(name, value);
}

void ReadVariables(const Yaml& root, const char* key, bool required, const Environment& environment,
                   ClusterConfig& config) {
  for (const std::string& entry : ListOf(root, key)) {
    const size_t equals = entry.find('=');
    const std::string name = Trimmed(entry.substr(0, equals));
    if (equals != entry.npos) {
      SetVariable(config, name, Expand(Trimmed(entry.substr(equals + 1)), environment));
    } else if (const auto value = environment(name)) {
      SetVariable(config, name, *value);
    } else if (required) {
      throw Error(Code::kNotFound, fmt::format("key '{}': the environment variable {} is not set; set it", key, name));
    } else {
      config.notes.push_back(fmt::format("{} of {} is not set, and not passed on", name, key));
    }
  }
}

// What the originals' reader makes a number of, and sbatch minutes of that.
bool IsSexagesimal(const Yaml& node) {
  static const std::regex kNumber(R"([-+]?[1-9]\d*(:[0-5]?\d)+)");
  return !node.quoted && std::regex_match(node.text, kNumber);
}

std::string ReadTime(const Yaml& node, const std::string& key, ClusterConfig& config) {
  const std::optional<std::string> time =
      node.type == Yaml::Type::kScalar ? SlurmTime(node.text) : std::optional<std::string>();
  if (!time)
    throw Bad(key, fmt::format("found {}, expected a time such as 04:00:00 or 1-12:00:00",
                               node.type == Yaml::Type::kScalar ? "'" + node.text + "'" : TypeName(node)));
  if (IsSexagesimal(node))
    config.notes.push_back(
        fmt::format("{} is {} hours, minutes and seconds as written; unquoted, the original reads another number there",
                    key, node.text));
  return *time;
}

void ReadTimeouts(const Yaml& root, ClusterConfig& config) {
  if (const Yaml* timeouts = Find(root, "timeouts", Yaml::Type::kMapping))
    for (const YamlMember& member : timeouts->members)
      if (!IsNull(member.value)) config.timeouts[member.key] = ReadTime(member.value, "timeouts." + member.key, config);
  if (const Yaml* node = Find(root, "default_timeout", Yaml::Type::kScalar))
    config.default_timeout = ReadTime(*node, "default_timeout", config);
}

unsigned ReadPort(const Yaml& tunnel) {
  const std::string text = TextOf(tunnel, "port");
  if (text.empty()) return 0;
  const bool digits = text.size() <= 5 && text.find_first_not_of("0123456789") == text.npos;
  const unsigned long port = digits ? std::stoul(text) : 0;
  if (port < 1 || port > 65535)
    throw Bad("ssh_tunnel.port", fmt::format("found '{}', expected a number from 1 to 65535", text));
  return static_cast<unsigned>(port);
}

std::string AbsoluteFolder(const Yaml& mapping, const char* key, const std::string& full_key,
                           const Environment& environment) {
  const std::string path = WithoutSlash(Expand(TextOf(mapping, key), environment));
  if (!path.empty() && path[0] != '/') throw Bad(full_key, fmt::format("found '{}', expected an absolute path", path));
  return path;
}

// A word that is to be one of ssh's own must not be read as an option of it.
std::string SshWord(const std::string& text, const std::string& key) {
  if (text.starts_with("-")) throw Bad(key, fmt::format("found '{}', expected a name", text));
  return text;
}

void ReadTunnel(const Yaml& root, const Environment& environment, ClusterConfig& config) {
  const Yaml* node = Find(root, "ssh_tunnel", Yaml::Type::kMapping);
  if (!node) return;
  SshTunnel tunnel;
  tunnel.host = SshWord(TextOf(*node, "host"), "ssh_tunnel.host");
  if (tunnel.host.empty()) throw Bad("ssh_tunnel.host", "it is missing, expected the name of a login host");
  tunnel.user = SshWord(Expand(TextOf(*node, "user"), environment), "ssh_tunnel.user");
  tunnel.job_dir = AbsoluteFolder(*node, "job_dir", "ssh_tunnel.job_dir", environment);
  if (tunnel.job_dir.empty()) throw Bad("ssh_tunnel.job_dir", "it is missing, expected a folder on the cluster");
  tunnel.identity = Expand(TextOf(*node, "identity"), environment);
  tunnel.pre_command = TextOf(*node, "pre_command");
  tunnel.port = ReadPort(*node);
  config.ssh = tunnel;
}

void ReadContainers(const Yaml& root, ClusterConfig& config) {
  const Yaml* containers = Find(root, "containers", Yaml::Type::kMapping);
  if (!containers) return;
  for (const YamlMember& member : containers->members) {
    if (member.value.type != Yaml::Type::kScalar)
      throw Bad("containers." + member.key, fmt::format("found {}, expected an image", TypeName(member.value)));
    if (!IsNull(member.value)) config.containers[member.key] = member.value.text;
  }
}

void ReadMounts(const Yaml& root, const Environment& environment, ClusterConfig& config) {
  for (const std::string& entry : ListOf(root, "mounts")) {
    try {
      config.mounts.push_back(ParseMount(entry, environment));
    } catch (const Error& error) {
      throw error.code() == Code::kInvalidArgument ? Bad("mounts", error.message()) : error;
    }
  }
}

ClusterConfig ReadConfig(const Yaml& root, const Environment& environment) {
  if (root.type != Yaml::Type::kMapping)
    throw Error(Code::kCorrupt, fmt::format("found {}, expected a mapping", TypeName(root)));
  ClusterConfig config;
  config.executor = TextOf(root, "executor");
  if (config.executor != "none" && config.executor != "local" && config.executor != "slurm")
    throw Bad("executor", fmt::format("found '{}', expected slurm, local or none", config.executor));
  ReadContainers(root, config);
  ReadMounts(root, environment, config);
  ReadVariables(root, "env_vars", false, environment, config);
  ReadVariables(root, "required_env_vars", true, environment, config);
  for (auto [key, text] : {std::pair{"account", &config.account},
                           {"partition", &config.partition},
                           {"cpu_partition", &config.cpu_partition},
                           {"job_name_prefix", &config.job_name_prefix},
                           {"mail_type", &config.mail_type},
                           {"mail_user", &config.mail_user}})
    *text = TextOf(root, key);
  const std::string type = TextOf(root, "dependency_type");
  if (!type.empty()) config.dependency_type = type;
  if (config.dependency_type.find_first_not_of("abcdefghijklmnopqrstuvwxyz") != std::string::npos)
    throw Bad("dependency_type", fmt::format("found '{}', expected afterany or afterok", type));
  ReadTimeouts(root, config);
  ReadTunnel(root, environment, config);
  config.job_dir = AbsoluteFolder(root, "job_dir", "job_dir", environment);
  config.disable_gpus_per_node = FlagOf(root, "disable_gpus_per_node");
  return config;
}

std::string FindConfig(Io& io, const ConfigSearch& search, const Environment& environment) {
  const std::string file = search.cluster + ".yaml";
  std::string folder = search.config_dir;
  if (folder.empty()) folder = environment("NEMO_SKILLS_CONFIG_DIR").value_or("");
  if (!folder.empty()) return JoinPath(folder, file);
  std::vector<std::string> folders = search.install_folders;
  folders.insert(folders.begin(), ".");
  for (std::string& tried : folders) {
    tried = JoinPath(tried, "cluster_configs");
    if (io.Stat(JoinPath(tried, file))) return JoinPath(tried, file);
  }
  throw Error(Code::kNotFound, fmt::format("it is in none of {}, expected it there; name its folder with --config_dir",
                                           fmt::join(folders, ", ")))
      .At("looking for", file);
}

// Whether `path` is `folder` or below it.
bool IsBelow(const std::string& path, const std::string& folder) {
  return folder == "/" || path == folder || (path.starts_with(folder) && path[folder.size()] == '/');
}

std::string Normal(const std::string& path) {
  return WithoutSlash(std::filesystem::path(path).lexically_normal().string());
}

const Mount* FirstMount(const ClusterConfig& config, const std::string& path) {
  for (const Mount& mount : config.mounts)
    if (IsBelow(path, mount.destination)) return &mount;
  return nullptr;
}

const Mount* DeepestMount(const ClusterConfig& config, const std::string& path) {
  const Mount* deepest = nullptr;
  for (const Mount& mount : config.mounts)
    if (IsBelow(path, mount.destination) && (!deepest || mount.destination.size() >= deepest->destination.size()))
      deepest = &mount;
  return deepest;
}

bool IsBelowSource(const ClusterConfig& config, const std::string& path) {
  return std::any_of(config.mounts.begin(), config.mounts.end(),
                     [&](const Mount& mount) { return IsBelow(path, mount.source); });
}

Error NotMounted(const ClusterConfig& config, const std::string& path) {
  std::vector<std::string> destinations;
  for (const Mount& mount : config.mounts) {
    if (path.starts_with(mount.destination))
      return Error(Code::kNotFound,
                   fmt::format("it is not under the mount {}, whose name only begins alike, expected a "
                               "path under a mount of {}; add one, or --mount_paths=SRC:DST",
                               mount.destination, config.path));
    destinations.push_back(mount.destination);
  }
  return Error(Code::kNotFound,
               fmt::format("it is under no mount of {} ({}), expected an absolute path under one; add one, or "
                           "--mount_paths=SRC:DST",
                           config.path,
                           destinations.empty() ? "which has none" : fmt::format("{}", fmt::join(destinations, ", "))));
}

}  // namespace

Environment ProcessEnvironment() {
  return [](const std::string& name) {
    const char* value = std::getenv(name.c_str());
    return value ? std::optional<std::string>(value) : std::nullopt;
  };
}

std::vector<Mount> ParseMounts(const std::string& list, const Environment& environment) {
  std::vector<Mount> mounts;
  for (const std::string& entry : Split(list, ','))
    if (!entry.empty()) mounts.push_back(ParseMount(entry, environment));
  return mounts;
}

std::optional<std::string> SlurmTime(const std::string& text) {
  static const std::regex kTime(R"(-1|INFINITE|UNLIMITED|\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2})", std::regex::icase);
  if (std::regex_match(text, kTime)) return text;
  static const std::regex kFourFields(R"((\d+):(\d+:\d+:\d+))");
  std::smatch fields;
  if (std::regex_match(text, fields, kFourFields)) return fields[1].str() + "-" + fields[2].str();
  return std::nullopt;
}

std::string TimeLimit(const ClusterConfig& config, const std::string& partition) {
  const auto found = config.timeouts.find(partition);
  return found == config.timeouts.end() ? config.default_timeout : found->second;
}

ClusterConfig ParseClusterConfig(const std::string& text, const std::string& path, const Environment& environment) {
  const Yaml root = ParseYaml(text, path);
  try {
    ClusterConfig config = ReadConfig(root, environment);
    config.path = path;
    return config;
  } catch (Error& error) {
    throw error.At("reading", path);
  }
}

ClusterConfig LoadClusterConfig(Io& io, const ConfigSearch& search, const Environment& environment) {
  std::string path;
  if (!search.cluster.empty()) {
    path = FindConfig(io, search, environment);
  } else {
    path = environment("NEMO_SKILLS_CONFIG").value_or("");
    if (path.empty()) return {};
  }
  ClusterConfig config = ParseClusterConfig(ReadWholeFile(io, path, kMaxConfig), path, environment);
  config.name = search.cluster.empty() ? std::filesystem::path(path).stem().string() : search.cluster;
  return config;
}

bool IsMounted(const ClusterConfig& config, const std::string& path) {
  return path.starts_with("/") && FirstMount(config, Normal(path)) != nullptr;
}

std::string HostPath(const ClusterConfig& config, const std::string& path, std::vector<std::string>& notes) {
  if (config.executor == "none") return path;
  const std::string normal = path.starts_with("/") ? Normal(path) : path;
  const Mount* mount = path.starts_with("/") ? DeepestMount(config, normal) : nullptr;
  if (!mount) {
    if (path.starts_with("/") && IsBelowSource(config, normal)) return normal;
    throw NotMounted(config, normal).At("translating", path);
  }
  const size_t cut = mount->destination == "/" ? 0 : mount->destination.size();
  const std::string host = (mount->source == "/" ? "" : mount->source) + normal.substr(cut);
  const Mount* first = FirstMount(config, normal);
  if (first->destination != mount->destination)
    notes.push_back(
        fmt::format("{} is under the mount {}, as a container shows it; the original takes {}, which stands "
                    "before it",
                    path, mount->destination, first->destination));
  return WithoutSlash(host.empty() ? "/" : host);
}

bool IsHubFolder(const std::string& name) {
  constexpr const char* kNames[] = {"HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"};
  return std::find(std::begin(kNames), std::end(kNames), name) != std::end(kNames);
}

}  // namespace reshard
