/* A wall clock that jumps, for one process: the seconds in a file are added to it. Preloaded.
 *
 * Everything of the process reads it, C libraries too. Waits are left alone: where one ends at a
 * time of the wall clock, that time is put back to the machine's. Monotonic clocks do not move;
 * a time below a billion seconds is one of theirs.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static const int64_t nothing = 0;
static const volatile int64_t *moved = &nothing;

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("RMQ_NEMESIS_CLOCK");
	int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	if (file < 0)
		return;
	void *place = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
	close(file);
	if (place != MAP_FAILED)
		moved = place;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	static __typeof__(&clock_gettime) real;
	if (!real)
		real = REAL(clock_gettime);
	int failed = real(clock, now);
	if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += *moved;
	return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec found;
	(void)zone;
	clock_gettime(CLOCK_REALTIME, &found);
	now->tv_sec = found.tv_sec;
	now->tv_usec = found.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *now)
{
	struct timespec found;
	clock_gettime(CLOCK_REALTIME_COARSE, &found);
	if (now)
		*now = found.tv_sec;
	return found.tv_sec;
}

int timespec_get(struct timespec *now, int base)
{
	if (base == TIME_UTC)
		clock_gettime(CLOCK_REALTIME, now);
	return base == TIME_UTC ? base : 0;
}

static struct timespec of_the_machine(const struct timespec *end)
{
	struct timespec found = *end;
	if (found.tv_sec > 1000000000)
		found.tv_sec -= *moved;
	return found;
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
			   const struct timespec *restrict end)
{
	static __typeof__(&pthread_cond_timedwait) real;
	if (!real) /* the plain name finds the condition variables of 2002 */
		real = (__typeof__(real))dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
	if (!real)
		real = REAL(pthread_cond_timedwait);
	struct timespec then = of_the_machine(end);
	return real(condition, mutex, &then);
}

int pthread_mutex_timedlock(pthread_mutex_t *restrict mutex, const struct timespec *restrict end)
{
	struct timespec then = of_the_machine(end);
	return REAL(pthread_mutex_timedlock)(mutex, &then);
}

int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex,
		  const struct timespec *restrict end)
{
	struct timespec then = of_the_machine(end);
	return REAL(cnd_timedwait)(condition, mutex, &then);
}

int mtx_timedlock(mtx_t *restrict mutex, const struct timespec *restrict end)
{
	struct timespec then = of_the_machine(end);
	return REAL(mtx_timedlock)(mutex, &then);
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict end)
{
	struct timespec then = of_the_machine(end);
	return REAL(sem_timedwait)(semaphore, &then);
}
