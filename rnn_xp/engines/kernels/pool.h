// Threads that wait for work; one call at a time uses them.
#pragma once

#include "call.h"

// Run job(what, {me, size, barrier}) on `size` threads, the caller's among them. If another call has
// the threads, or they cannot be started, or they sleep and the job is brief, the caller does it
// alone: the bits are the same.
void run_team(void (*job)(const void* what, Team), const void* what, int size, bool brief);

constexpr int MOST_THREADS = 64;
