/* Runs a program and gets in the way of its system calls: the n-th of a kind fails, or the program is killed there.
 *
 *   inject [-p PART] [-c FILE] [-l FILE] [RULE] -- PROGRAM ARGUMENT...
 *   RULE = NAME[,NAME...]:N[+]:ACTION      the N-th of these calls over all threads; with + that one and all after it
 *   ACTION = kill | term | int | ERRNO     the call is not made then
 *
 * Only calls count that are about a path with PART in it (by name, or by the file behind a descriptor). -c writes the
 * number of them to FILE, and a line with the name of each. -l writes a line to FILE for each that has succeeded, with
 * tabs between its name, two numbers that count all beginnings and ends of calls, its flags and its paths. Ends as the program ends; 128 + n where a signal ended it;
 * 125 where it could not be run like this. Linux on x86-64 and AArch64. It sees the calls themselves, so that it makes no
 * difference which library makes them. */

#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NOT_RUN = 125, MOST_THREADS = 4096, PATH_BYTES = 4096 };

/* What each call is called, and which of its arguments say what it is about: paths and descriptors, −1 for none. */
static const struct call {
    const char *name;
    long number;
    int path[2], descriptor[2];
} CALLS[] = {
#define FD(name, a, b) {#name, SYS_##name, {-1, -1}, {a, b}}
#define PATH(name, a, b) {#name, SYS_##name, {a, b}, {-1, -1}}
    FD(read, 0, -1), FD(pread64, 0, -1), FD(write, 0, -1), FD(pwrite64, 0, -1), FD(fsync, 0, -1), FD(fdatasync, 0, -1),
    FD(ftruncate, 0, -1), FD(fallocate, 0, -1), FD(copy_file_range, 2, 0), FD(ioctl, 0, -1), FD(close, 0, -1),
    FD(getdents64, 0, -1), FD(flock, 0, -1), FD(mmap, 4, -1), FD(fstat, 0, -1), FD(sendfile, 0, 1),
    PATH(openat, 1, -1), PATH(mkdirat, 1, -1), PATH(renameat2, 1, 3), PATH(renameat, 1, 3), PATH(unlinkat, 1, -1),
    PATH(statx, 1, -1), PATH(linkat, 1, 3), PATH(statfs, 0, -1),
#ifdef SYS_mkdir
    PATH(mkdir, 0, -1), PATH(rename, 0, 1), PATH(unlink, 0, -1), PATH(rmdir, 0, -1), PATH(link, 0, 1),
#endif
};
enum { CALL_COUNT = sizeof CALLS / sizeof *CALLS };

static const struct { const char *name; int number; } ERRORS[] = {
    {"ENOSPC", ENOSPC}, {"EIO", EIO}, {"EDQUOT", EDQUOT}, {"EFBIG", EFBIG}, {"EROFS", EROFS}, {"EACCES", EACCES},
    {"EPERM", EPERM}, {"EOPNOTSUPP", EOPNOTSUPP}, {"EXDEV", EXDEV}, {"EINVAL", EINVAL}, {"ENOSYS", ENOSYS},
    {"EINTR", EINTR}, {"EMFILE", EMFILE}, {"ENOMEM", ENOMEM}, {"EAGAIN", EAGAIN}, {"ENOLCK", ENOLCK},
};

struct rule {
    char names[256];
    long number;
    int goes_on, error, signal;
};

/* What is known of a thread between the beginning of a call and its end. */
struct thread {
    pid_t id;
    int fails_with;
    const struct call *call;
    long began;
    uint64_t flags;
    char paths[2][PATH_BYTES];
};

static struct thread *threads[MOST_THREADS];
static int thread_count;

static void fail(const char *what) {
    fprintf(stderr, "inject: %s: %s\n", what, strerror(errno));
    exit(NOT_RUN);
}

static struct thread *thread_of(pid_t id) {
    for (int i = 0; i < thread_count; i++)
        if (threads[i]->id == id)
            return threads[i];
    struct thread *new = thread_count < MOST_THREADS ? calloc(1, sizeof *new) : NULL;
    if (!new)
        fail("too many threads");
    new->id = id;
    return threads[thread_count++] = new;
}

static struct rule parse(char *text) {
    struct rule rule = {0};
    char *number = strchr(text, ':'), *action = number ? strchr(number + 1, ':') : NULL;
    if (!action || number - text >= (long)sizeof rule.names)
        fail("a rule is NAMES:N:ACTION");
    snprintf(rule.names, sizeof rule.names, ",%.*s,", (int)(number - text), text);
    char *end;
    rule.number = strtol(number + 1, &end, 10);
    rule.goes_on = *end == '+';
    action++;
    if (!strcmp(action, "kill"))
        rule.signal = SIGKILL;
    else if (!strcmp(action, "term"))
        rule.signal = SIGTERM;
    else if (!strcmp(action, "int"))
        rule.signal = SIGINT;
    for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; i++)
        if (!strcmp(action, ERRORS[i].name))
            rule.error = ERRORS[i].number;
    if (!rule.error && !rule.signal)
        fail("an unknown action");
    return rule;
}

static int is_named(const struct rule *rule, const char *name) {
    char wanted[64];
    snprintf(wanted, sizeof wanted, ",%s,", name);
    return !strcmp(rule->names, ",all,") || strstr(rule->names, wanted) != NULL;
}

/* The text at an address of the program. */
static void text_at(pid_t thread, uint64_t address, char *out) {
    size_t got = 0;
    while (got < PATH_BYTES - 1) {
        errno = 0;
        long word = ptrace(PTRACE_PEEKDATA, thread, (void *)(address + got), NULL);
        if (errno)
            break;
        for (size_t i = 0; i < sizeof word && got < PATH_BYTES - 1; i++, got++) {
            out[got] = (char)(word >> (8 * i));
            if (!out[got])
                return;
        }
    }
    out[got] = 0;
}

/* The path of what is open under a number. */
static void path_behind(pid_t thread, int descriptor, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/%d/fd/%d", (int)thread, descriptor);
    ssize_t length = readlink(link, out, PATH_BYTES - 1);
    out[length < 0 ? 0 : length] = 0;
}

/* What a call is about. In calls that have a folder for a path, it is the argument before. */
static void find_paths(struct thread *thread, const uint64_t *arguments) {
    static const char *const WITHOUT[] = {"mkdir", "rename", "unlink", "rmdir", "link", "statfs"};
    const struct call *call = thread->call;
    int has_folder = 1;
    for (size_t i = 0; i < sizeof WITHOUT / sizeof *WITHOUT; i++)
        has_folder &= strcmp(call->name, WITHOUT[i]) != 0;
    for (int i = 0; i < 2; i++) {
        char *path = thread->paths[i];
        *path = 0;
        if (call->descriptor[i] >= 0)
            path_behind(thread->id, (int)arguments[call->descriptor[i]], path);
        if (call->path[i] < 0)
            continue;
        text_at(thread->id, arguments[call->path[i]], path);
        if (*path != '/' && has_folder && (int)arguments[call->path[i] - 1] != AT_FDCWD) {
            char name[PATH_BYTES], folder[PATH_BYTES];
            memcpy(name, path, sizeof name);
            path_behind(thread->id, (int)arguments[call->path[i] - 1], folder);
            size_t length = strlen(folder), more = strlen(name);
            if (length + 1 + more < PATH_BYTES) {
                memcpy(path, folder, length);
                path[length] = '/';
                memcpy(path + length + 1, name, more + 1);
            }
        }
    }
}

static void leave_out(pid_t thread) {
#if defined(__x86_64__)
    struct user_regs_struct registers;
    ptrace(PTRACE_GETREGS, thread, NULL, &registers);
    registers.orig_rax = (unsigned long long)-1;
    ptrace(PTRACE_SETREGS, thread, NULL, &registers);
#else
    int none = -1;
    struct iovec vector = {&none, sizeof none};
    ptrace(PTRACE_SETREGSET, thread, (void *)NT_ARM_SYSTEM_CALL, &vector);
#endif
}

static void answer(pid_t thread, int error) {
#if defined(__x86_64__)
    struct user_regs_struct registers;
    ptrace(PTRACE_GETREGS, thread, NULL, &registers);
    registers.rax = (unsigned long long)-error;
    ptrace(PTRACE_SETREGS, thread, NULL, &registers);
#else
    struct user_regs_struct registers;
    struct iovec vector = {&registers, sizeof registers};
    ptrace(PTRACE_GETREGSET, thread, (void *)NT_PRSTATUS, &vector);
    registers.regs[0] = (unsigned long long)-error;
    ptrace(PTRACE_SETREGSET, thread, (void *)NT_PRSTATUS, &vector);
#endif
}

int main(int argc, char **argv) {
    const char *part = "", *count_file = NULL, *log_file = NULL;
    struct rule rule = {0};
    int has_rule = 0, at = 1;
    for (; at < argc && strcmp(argv[at], "--"); at++) {
        if (!strcmp(argv[at], "-p") && at + 1 < argc)
            part = argv[++at];
        else if (!strcmp(argv[at], "-c") && at + 1 < argc)
            count_file = argv[++at];
        else if (!strcmp(argv[at], "-l") && at + 1 < argc)
            log_file = argv[++at];
        else
            rule = parse(argv[at]), has_rule = 1;
    }
    if (at + 1 >= argc)
        fail("no program");
    FILE *counts = count_file ? fopen(count_file, "w") : NULL, *log = log_file ? fopen(log_file, "w") : NULL;

    pid_t program = fork();
    if (program < 0)
        fail("fork");
    if (program == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
            _exit(NOT_RUN);
        raise(SIGSTOP);
        execvp(argv[at + 1], argv + at + 1);
        _exit(NOT_RUN);
    }
    int status;
    if (waitpid(program, &status, 0) < 0 || !WIFSTOPPED(status))
        fail("tracing is not allowed");
    long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
                   PTRACE_O_EXITKILL | PTRACE_O_TRACEEXEC;
    if (ptrace(PTRACE_SETOPTIONS, program, NULL, options) < 0)
        fail("tracing is not allowed");
    ptrace(PTRACE_SYSCALL, program, NULL, 0);

    long seen = 0, moment = 0;
    int ended = NOT_RUN;
    for (;;) {
        pid_t id = waitpid(-1, &status, __WALL);
        if (id < 0) {
            if (errno == EINTR)
                continue;
            break; /* no thread is left */
        }
        if (WIFEXITED(status) || WIFSIGNALED(status)) {
            if (id == program)
                ended = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
            continue;
        }
        int signal = WSTOPSIG(status), pass_on = 0;
        if (signal == (SIGTRAP | 0x80)) {
            struct __ptrace_syscall_info info;
            if (ptrace(PTRACE_GET_SYSCALL_INFO, id, (void *)sizeof info, &info) <= 0)
                continue; /* it was killed meanwhile */
            struct thread *thread = thread_of(id);
            moment++;
            if (info.op == PTRACE_SYSCALL_INFO_ENTRY) {
                const struct call *call = NULL;
                for (int i = 0; i < CALL_COUNT && !call; i++)
                    if (CALLS[i].number == (long)info.entry.nr)
                        call = &CALLS[i];
                thread->call = call;
                if (call) {
                    find_paths(thread, (const uint64_t *)info.entry.args);
                    if (!strstr(thread->paths[0], part) && !strstr(thread->paths[1], part))
                        call = thread->call = NULL;
                }
                if (call) {
                    thread->began = moment;
                    thread->flags = info.entry.args[!strcmp(call->name, "renameat2") ? 4 : 2];
                }
                if (call && (!has_rule || is_named(&rule, call->name))) {
                    seen++;
                    if (counts)
                        fprintf(counts, "%s\n", call->name);
                    if (has_rule && (seen == rule.number || (rule.goes_on && seen > rule.number))) {
                        if (rule.signal == SIGKILL) {
                            kill(program, SIGKILL);
                            continue;
                        }
                        if (rule.signal)
                            kill(program, rule.signal);
                        else {
                            leave_out(id);
                            thread->fails_with = rule.error;
                        }
                    }
                }
            } else if (info.op == PTRACE_SYSCALL_INFO_EXIT && thread->fails_with) {
                answer(id, thread->fails_with);
                thread->fails_with = 0;
            } else if (info.op == PTRACE_SYSCALL_INFO_EXIT && thread->call && log && !info.exit.is_error) {
                fprintf(log, "%s\t%ld\t%ld\t%llu\t%s\t%s\n", thread->call->name, thread->began, moment,
                        (unsigned long long)thread->flags, thread->paths[0], thread->paths[1]);
            }
        } else if (signal != SIGTRAP && signal != SIGSTOP) {
            pass_on = signal;
        }
        ptrace(PTRACE_SYSCALL, id, NULL, pass_on);
    }
    if (counts)
        fclose(counts);
    if (log)
        fclose(log);
    return ended;
}
