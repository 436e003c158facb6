/* This process gives up whatever it could do beside reading, writing, waiting and thinking. */
#ifndef EVENLINK_CONFINE_H
#define EVENLINK_CONFINE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { CONFINED_USER = 65534 };

#if defined(__x86_64__)
#define CONFINE_MACHINE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define CONFINE_MACHINE AUDIT_ARCH_AARCH64
#endif

#ifdef CONFINE_MACHINE
#define CONFINE_ALLOW(name)                                \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), \
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

/* Whatever is not named here fails with EPERM. Nothing of it opens, connects, starts or sends a
 * signal to anything. */
static inline int confine_system_calls(void)
{
    struct sock_filter steps[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CONFINE_MACHINE, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        CONFINE_ALLOW(read),
        CONFINE_ALLOW(write),
        CONFINE_ALLOW(recvfrom),
        CONFINE_ALLOW(close),
#ifdef SYS_poll
        CONFINE_ALLOW(poll),
#endif
        CONFINE_ALLOW(ppoll),
        CONFINE_ALLOW(brk),
        CONFINE_ALLOW(mmap),
        CONFINE_ALLOW(munmap),
        CONFINE_ALLOW(mremap),
        CONFINE_ALLOW(madvise),
        CONFINE_ALLOW(futex),
        CONFINE_ALLOW(clock_gettime),
        CONFINE_ALLOW(gettimeofday),
        CONFINE_ALLOW(getrandom),
        CONFINE_ALLOW(rt_sigaction),
        CONFINE_ALLOW(rt_sigprocmask),
        CONFINE_ALLOW(rt_sigreturn),
        CONFINE_ALLOW(restart_syscall),
        CONFINE_ALLOW(exit),
        CONFINE_ALLOW(exit_group),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
    };
    struct sock_fprog program = {.len = sizeof steps / sizeof *steps, .filter = steps};

    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) ? errno : 0;
}
#endif

static inline int confine_capabilities(void)
{
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3];

    memset(none, 0, sizeof none);
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    return syscall(SYS_capset, &header, none) ? errno : 0;
}

/* 0, or an errno, with what was refused in *what. A root that may not become another user stays
 * root without any right of root's; a kernel without seccomp, or a machine whose system calls are
 * not listed here, leaves the calls as they are, and *what then says so. */
static inline int confine(const char **what)
{
    int code;

    *what = "becoming nobody";
    if (geteuid() == 0 && setgroups(0, NULL) == 0) {
        if (setresgid(CONFINED_USER, CONFINED_USER, CONFINED_USER)
            || setresuid(CONFINED_USER, CONFINED_USER, CONFINED_USER))
            return errno;
    }
    *what = "dropping capabilities";
    code = confine_capabilities();
    if (code)
        return code;
    *what = "no new privileges";
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return errno;
    *what = "dying with the parent";
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0))
        return errno;
    *what = "system calls are not limited";
#ifdef CONFINE_MACHINE
    code = confine_system_calls();
    if (code == 0)
        *what = "";
    else if (code != EINVAL)
        return code;
#endif
    return 0;
}

#endif
