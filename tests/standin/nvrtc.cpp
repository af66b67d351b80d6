// Stands in for NVRTC (libnvrtc.so.13): compiles device text with the C++ compiler into a shared object, which
// kernel.h makes runnable by libcuda. A "cubin" is a line of text that says where that object lies.

#include <dlfcn.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "device.h"

extern char **environ;

namespace {

enum Result {
    SUCCESS = 0,
    PROGRAM_CREATION_FAILURE = 2,
    INVALID_INPUT = 3,
    INVALID_PROGRAM = 4,
    INVALID_OPTION = 5,
    COMPILATION = 6,
    INTERNAL_ERROR = 11,
};

const int ARCHITECTURES[] = {75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121};

struct Program {
    std::string text, name, log, ptx, cubin;
};

// ---- Files and processes -----------------------------------------------------------------------------------------

std::string read_file(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}

void write_file(const std::string &path, const std::string &text) {
    std::ofstream(path, std::ios::binary) << text;
}

// A folder that is gone with its owner.
struct Folder {
    std::string path;
    Folder() {
        const char *parent = getenv("TMPDIR");
        path = std::string(parent && *parent ? parent : "/tmp") + "/standin-XXXXXX";
        if (!mkdtemp(path.data())) standin::violation("%s cannot be made", path.c_str());
    }
    ~Folder() {
        std::error_code ignored;
        std::filesystem::remove_all(path, ignored);
    }
};

// Where compiled modules are kept: for all processes, or for this one.
std::string cache() {
    if (const char *named = getenv("STANDIN_CACHE"); named && *named) {
        mkdir(named, 0755);
        return named;
    }
    static Folder own;
    return own.path;
}

// Runs a command with its output going to a file; true where it ends with 0.
bool run(const std::vector<std::string> &command, const std::string &log_path) {
    std::vector<char *> arguments;
    for (const std::string &word : command) arguments.push_back(const_cast<char *>(word.c_str()));
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    pid_t child = 0;
    int status = posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    if (status != 0) standin::violation("%s cannot be run: %s", arguments[0], strerror(status));
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

std::string header() {
    if (const char *path = getenv("STANDIN_KERNEL_H")) return path;
    Dl_info info;
    if (!dladdr(reinterpret_cast<void *>(header), &info)) return "kernel.h";
    // The path is as the loader was given it, and the compiler runs in another folder.
    char *whole = realpath(info.dli_fname, nullptr);
    const std::string library = whole ? whole : info.dli_fname;
    free(whole);
    const size_t slash = library.rfind('/');
    return (slash == std::string::npos ? std::string(".") : library.substr(0, slash)) + "/kernel.h";
}

// FNV-1a, twice with different starts.
std::string hash(const std::string &text) {
    uint64_t one = 0xcbf29ce484222325, two = 0x84222325cbf29ce4;
    for (unsigned char byte : text) {
        one = (one ^ byte) * 0x100000001b3;
        two = (two ^ byte) * 0x100000001b3 + 1;
    }
    char digits[33];
    snprintf(digits, sizeof digits, "%016llx%016llx", static_cast<unsigned long long>(one),
             static_cast<unsigned long long>(two));
    return digits;
}

// ---- From device text to C++ -------------------------------------------------------------------------------------

// Goes through preprocessed text once: takes out the words kernel.h has left for it and notes the kernels.
class Rewriter {
   public:
    explicit Rewriter(const std::string &text) : text(text) {}

    std::string rewrite() {
        while (at < text.size()) step();
        return out + wrappers();
    }

   private:
    const std::string &text;
    size_t at = 0;
    std::string out;
    std::vector<bool> braces;  // open ones; whether they follow extern "C"
    bool c_linkage = false, templated = false, in_kernel = false;  // of the declaration being read
    std::string bounds = "0";
    struct Kernel {
        std::string name, bounds;
    };
    std::vector<Kernel> kernels;

    static bool word_character(char c) { return isalnum(static_cast<unsigned char>(c)) || c == '_'; }

    size_t after_spaces(size_t from) const {
        while (from < text.size() && isspace(static_cast<unsigned char>(text[from]))) from++;
        return from;
    }

    bool follows(size_t from, const char *word) const { return text.compare(from, strlen(word), word) == 0; }

    // What stands in the parentheses that open next; `at` moves behind them.
    std::string parenthesised() {
        const size_t open = after_spaces(at);
        int depth = 0;
        for (at = open; at < text.size(); at++) {
            if (text[at] == '(') depth++;
            if (text[at] == ')' && --depth == 0) break;
        }
        at++;
        return text.substr(open + 1, at - open - 2);
    }

    void end_of_declaration() {
        c_linkage = templated = in_kernel = false;
        bounds = "0";
    }

    void step() {
        const char c = text[at];
        if (c == '"' || c == '\'') return literal(c);
        if (c == '#') {  // where a line comes from
            const size_t end = std::min(text.find('\n', at), text.size());
            out.append(text, at, end - at);
            at = end;
            return;
        }
        if (word_character(c)) return word();
        if (c == '{') {
            braces.push_back(c_linkage && out.find_last_not_of(" \n\t") == out.rfind('"'));
            end_of_declaration();
        } else if (c == '}') {
            if (!braces.empty()) braces.pop_back();
            end_of_declaration();
        } else if (c == ';') {
            end_of_declaration();
        }
        out += c;
        at++;
    }

    void literal(char quote) {
        const size_t begin = at++;
        while (at < text.size() && text[at] != quote) at += text[at] == '\\' ? 2 : 1;
        at = std::min(at + 1, text.size());
        out.append(text, begin, at - begin);
    }

    void word() {
        const size_t begin = at;
        while (at < text.size() && word_character(text[at])) at++;
        const std::string word = text.substr(begin, at - begin);
        const size_t next = after_spaces(at);
        if (word == "__standin_global") {
            in_kernel = true;
        } else if (word == "__standin_bounds") {
            const std::string arguments = parenthesised();
            bounds = arguments.substr(0, arguments.find(','));
        } else if (word == "__standin_shared") {
            out += "static __attribute__((section(\"standin_shared_zone\")))";
        } else if (word == "extern" && follows(next, "__standin_shared")) {
            at = next + strlen("__standin_shared");
            dynamic_shared();
        } else {
            if (word == "extern" && follows(next, "\"C\"")) c_linkage = true;
            if (word == "template") templated = true;
            if (in_kernel && next < text.size() && text[next] == '(' && word != "__attribute__") kernel(word);
            out += word;
        }
    }

    // extern __shared__ TYPE NAME[];
    void dynamic_shared() {
        const size_t end = text.find_first_of("[;", at);
        size_t last = end;
        while (last > at && !word_character(text[last - 1])) last--;
        size_t first = last;
        while (first > at && word_character(text[first - 1])) first--;
        out.append(text, at, first - at);
        out += "*const " + text.substr(first, last - first) + " = standin_dynamic_pointer()";
        at = std::min(text.find(';', at), text.size());
    }

    // Only kernels with C linkage can be found by their plain name.
    void kernel(const std::string &name) {
        in_kernel = false;
        const bool c = c_linkage || std::find(braces.begin(), braces.end(), true) != braces.end();
        const auto same = [&](const Kernel &other) { return other.name == name; };
        if (c && !templated && std::none_of(kernels.begin(), kernels.end(), same)) kernels.push_back({name, bounds});
    }

    std::string wrappers() const {
        std::string list = "\nstatic const standin_kernel standin_kernels[] = {\n";
        for (const Kernel &kernel : kernels)
            list += "standin_entry<" + kernel.name + ">::describe(\"" + kernel.name + "\", " + kernel.bounds + "),\n";
        return list +
               "    {}};\n"
               "extern \"C\" __attribute__((visibility(\"default\"))) const standin_module standin_table = {\n"
               "    STANDIN_ABI, &standin_self, standin_dynamic, STANDIN_DYNAMIC, __start_standin_shared_zone,\n"
               "    __stop_standin_shared_zone, standin_kernels, " +
               std::to_string(kernels.size()) + "};\n";
    }
};

// ---- Compiling ---------------------------------------------------------------------------------------------------

const char *const FLAGS[] = {
    "-O2", "-w", "-fPIC", "-fno-exceptions", "-fno-rtti", "-fno-stack-protector", "-fno-math-errno",
    "-fvisibility=hidden",
    "-ffp-contract=off",                // fused only where the text says fma
    "-fno-ipa-reference",               // shared memory changes while a thread waits
    "-fsanitize=alignment,bounds,shift-exponent,integer-divide-by-zero",  // the handlers are in kernel.h
    "-fno-sanitize-recover=all",
};

struct Options {
    std::vector<std::string> passed;  // to the compiler
    int architecture = 75;
    bool real = false;  // sm_, not compute_
    bool valid = true;
};

Options read_options(int count, const char *const *options) {
    Options out;
    std::string standard = "-std=c++17";
    for (int i = 0; i < count; i++) {
        const std::string option = options[i];
        const size_t equals = option.find('=');
        const std::string name = option.substr(0, equals);
        std::string value = equals == std::string::npos ? "" : option.substr(equals + 1);
        const bool separate = option == "-D" || option == "-arch" || option == "--gpu-architecture" || option == "-std";
        if (separate && i + 1 < count) value = options[++i];
        if (name == "--gpu-architecture" || name == "-arch") {
            out.real = value.compare(0, 3, "sm_") == 0;
            out.architecture = atoi(value.c_str() + value.rfind('_') + 1);
            out.valid &= std::count(std::begin(ARCHITECTURES), std::end(ARCHITECTURES), out.architecture) == 1;
        } else if (name == "--std" || name == "-std") {
            standard = "-std=" + value;
        } else if (option == "-D" || name == "--define-macro") {
            out.passed.push_back("-D" + value);
        } else if (option.compare(0, 2, "-D") == 0) {
            out.passed.push_back(option);
        }
    }
    out.passed.push_back(standard);
    out.passed.insert(out.passed.end(), {"-D__CUDACC__", "-D__CUDACC_RTC__", "-D__CUDACC_VER_MAJOR__=13",
                                         "-D__CUDA_ARCH__=" + std::to_string(out.architecture * 10)});
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) out.passed.push_back("-march=x86-64-v3");
#endif
    return out;
}

// Compiles to `target`; the log is empty where that went well.
bool compile(const Program &program, const Options &options, const std::string &shim, const std::string &target,
             std::string &log) {
    const Folder folder;
    const std::string source = folder.path + "/text.cpp", preprocessed = folder.path + "/text.i",
                      object = folder.path + "/text.o", output = folder.path + "/log";
    // Without external linkage, static variables of templates can be put into the section of shared memory.
    write_file(source, "#include \"" + shim + "\"\nnamespace {\n#line 1 \"" + program.name + "\"\n" + program.text +
                           "\n}\n");
    std::vector<std::string> command = {"g++", "-E", "-w", "-nostdinc", "-nostdinc++"};
    command.insert(command.end(), options.passed.begin(), options.passed.end());
    command.insert(command.end(), {"-o", preprocessed, source});
    bool good = run(command, output);
    if (good) {
        write_file(preprocessed, Rewriter(read_file(preprocessed)).rewrite());
        command = {"g++", "-x", "c++-cpp-output", "-c"};
        command.insert(command.end(), std::begin(FLAGS), std::end(FLAGS));
        command.insert(command.end(), options.passed.begin(), options.passed.end());
        command.insert(command.end(), {"-o", object, preprocessed});
        good = run(command, output) && run({"g++", "-shared", "-o", target, object, "-lm"}, output);
    }
    log = read_file(output);
    return good;
}

int give_size(const std::string &text, size_t *size) {
    *size = text.empty() ? 0 : text.size() + 1;
    return SUCCESS;
}

int give(const std::string &text, char *out) {
    if (text.empty()) return INVALID_PROGRAM;
    memcpy(out, text.c_str(), text.size() + 1);
    return SUCCESS;
}

}  // namespace

#define ENTER \
    if (int status = standin::injected(__func__, INTERNAL_ERROR)) return status;
#define NEED(condition, status) \
    if (!(condition)) return status;

extern "C" {

int nvrtcVersion(int *major, int *minor) {
    ENTER
    *major = 13;
    *minor = 0;
    return SUCCESS;
}

int nvrtcGetNumSupportedArchs(int *count) {
    ENTER
    *count = int(std::size(ARCHITECTURES));
    return SUCCESS;
}

int nvrtcGetSupportedArchs(int *out) {
    ENTER
    std::copy(std::begin(ARCHITECTURES), std::end(ARCHITECTURES), out);
    return SUCCESS;
}

int nvrtcCreateProgram(Program **out, const char *text, const char *name, int headers, const char *const *,
                       const char *const *) {
    ENTER
    NEED(out && text, INVALID_INPUT)
    NEED(headers == 0, PROGRAM_CREATION_FAILURE)
    *out = new Program{text, name ? name : "default_program", "", "", ""};
    return SUCCESS;
}

int nvrtcDestroyProgram(Program **program) {
    ENTER
    NEED(program && *program, INVALID_PROGRAM)
    delete *program;
    *program = nullptr;
    return SUCCESS;
}

int nvrtcCompileProgram(Program *program, int count, const char *const *texts) {
    ENTER
    NEED(program, INVALID_PROGRAM)
    const Options options = read_options(count, texts);
    if (!options.valid) {
        program->log = "nvrtc: error: invalid value for --gpu-architecture (-arch)\n";
        return INVALID_OPTION;
    }
    const std::string shim = header();
    std::string key = program->text + '\0' + program->name + '\0' + __VERSION__ + '\0' + read_file(shim) + '\0' +
                      read_file(shim.substr(0, shim.rfind('/') + 1) + "abi.h");
    for (const char *flag : FLAGS) key += std::string(1, '\0') + flag;
    for (const std::string &option : options.passed) key += '\0' + option;
    const std::string name = hash(key) + ".so";
    const std::string path = cache() + "/" + name;
    if (access(path.c_str(), R_OK) != 0) {
        // Others may be compiling the same: each makes its own, and puts the same in place.
        static std::atomic<int> counter;
        const std::string made = path + "." + std::to_string(getpid()) + "." + std::to_string(++counter);
        if (!compile(*program, options, shim, made, program->log)) {
            unlink(made.c_str());
            return COMPILATION;
        }
        if (rename(made.c_str(), path.c_str()) != 0) return INTERNAL_ERROR;
    }
    program->log.clear();
    // Read by cuModuleLoadData.
    const std::string rest = " " + std::to_string(options.architecture) + " " + path + "\n";
    program->ptx = "STANDIN-MODULE ptx" + rest;
    program->cubin = options.real ? "STANDIN-MODULE cubin" + rest : "";
    return SUCCESS;
}

int nvrtcGetCUBINSize(Program *program, size_t *size) {
    ENTER
    NEED(program && size, INVALID_INPUT)
    return give_size(program->cubin, size);
}

int nvrtcGetCUBIN(Program *program, char *out) {
    ENTER
    NEED(program && out, INVALID_INPUT)
    return give(program->cubin, out);
}

int nvrtcGetPTXSize(Program *program, size_t *size) {
    ENTER
    NEED(program && size, INVALID_INPUT)
    return give_size(program->ptx, size);
}

int nvrtcGetPTX(Program *program, char *out) {
    ENTER
    NEED(program && out, INVALID_INPUT)
    return give(program->ptx, out);
}

int nvrtcGetProgramLogSize(Program *program, size_t *size) {
    ENTER
    NEED(program && size, INVALID_INPUT)
    *size = program->log.size() + 1;
    return SUCCESS;
}

int nvrtcGetProgramLog(Program *program, char *out) {
    ENTER
    NEED(program && out, INVALID_INPUT)
    memcpy(out, program->log.c_str(), program->log.size() + 1);
    return SUCCESS;
}

const char *nvrtcGetErrorString(int status) {
    static const char *const NAMES[] = {
        "NVRTC_SUCCESS", "NVRTC_ERROR_OUT_OF_MEMORY", "NVRTC_ERROR_PROGRAM_CREATION_FAILURE",
        "NVRTC_ERROR_INVALID_INPUT", "NVRTC_ERROR_INVALID_PROGRAM", "NVRTC_ERROR_INVALID_OPTION",
        "NVRTC_ERROR_COMPILATION", "NVRTC_ERROR_BUILTIN_OPERATION_FAILURE",
        "NVRTC_ERROR_NO_NAME_EXPRESSIONS_AFTER_COMPILATION", "NVRTC_ERROR_NO_LOWERED_NAMES_BEFORE_COMPILATION",
        "NVRTC_ERROR_NAME_EXPRESSION_NOT_VALID", "NVRTC_ERROR_INTERNAL_ERROR",
    };
    return status >= 0 && size_t(status) < std::size(NAMES) ? NAMES[status] : "NVRTC_ERROR unknown";
}

}  // extern "C"
