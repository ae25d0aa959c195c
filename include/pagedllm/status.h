/* status.h - what calls return, and the text that goes with a failure.
 *
 * A fallible call returns int: PLLM_OK (or a small count >= 0), or one of the negative codes below.
 * Byte sizes come out through uint64_t pointers, never through the return value. The call that
 * first meets a failure fills this thread's error record; callers pass the code up unchanged. */
#ifndef PAGEDLLM_STATUS_H
#define PAGEDLLM_STATUS_H

#include <stdint.h>

#if defined(__GNUC__)
#define PLLM_API __attribute__((visibility("default")))
#else
#define PLLM_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Append-only: a code keeps its number and meaning for ever. */
enum {
    PLLM_OK = 0,
    PLLM_EINVAL = -1,        /* the caller broke a documented rule, or a file says nonsense */
    PLLM_ENOMEM = -2,        /* no host memory for metadata */
    PLLM_ENODEVMEM = -3,     /* the device or its budget is full: evict, then retry */
    PLLM_EDEVICE = -4,       /* the device failed; native holds its own code */
    PLLM_EIO = -5,           /* a file or disk failed; native holds errno */
    PLLM_EBUSY = -6,         /* in use or not ready yet; try later */
    PLLM_ENOTFOUND = -7,     /* no such thing */
    PLLM_EEXIST = -8,        /* that name is taken */
    PLLM_ESTALE = -9,        /* the handle's generation is over */
    PLLM_ETIMEDOUT = -10,    /* the deadline passed */
    PLLM_ECANCELED = -11,    /* canceled by the caller or a signal */
    PLLM_EPERM = -12,        /* not allowed */
    PLLM_ECORRUPT = -13,     /* bytes read back do not match their checksum */
    PLLM_EUNSUPPORTED = -14, /* understood, but not something this build or device does */
    PLLM_ELIMIT = -15,       /* beyond a configured or documented limit */
};

typedef struct pllm_error {
    int32_t status, native; /* native: errno or the device's code, 0 if none */
    char text[1024];        /* UTF-8, one sentence for a person: what, which limit, what to do */
} pllm_error;

/* This thread's last failure. Never NULL; valid until this thread's next failing call. */
PLLM_API const pllm_error *pllm_last_error(void);

/* "ENOMEM" and the like; "EUNKNOWN" for a number that is no status. Static storage. */
PLLM_API const char *pllm_status_name(int status);

/* The library's version, "0.1.0". Static storage. */
PLLM_API const char *pllm_version(void);

#ifdef __cplusplus
}
#endif
#endif
