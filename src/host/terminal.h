/*
 * The controlling terminal in raw mode, and the promise that it is put back: on a normal end, on a
 * signal that ends the process and on a crash.
 */
#pragma once

#include "base/types.h"

/*
 * Raw input on @fd, output processing kept. False when @fd is no terminal or we are in the
 * background. One terminal per process.
 */
bool terminal_raw(int fd);

/* After the process was stopped and continued: renew the raw mode, if there was one. */
void terminal_resume(void);

/* Put the terminal back. Async-signal-safe; does nothing when it was not changed. */
void terminal_restore(void);

/*
 * Handle signals that mean the process is broken (SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL,
 * SIGSYS): restore the terminal, say so in one line, die of the signal. Called before threads
 * start; an engine that wants some of these signals for itself takes them over later.
 */
void crash_install(void);

/* The handler's work, for whoever took a signal over and found that it was not his. Does not
 * return. */
void crash_die(int sig, void *siginfo) __attribute__((noreturn));
