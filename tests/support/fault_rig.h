/* fault_rig.h - "one call fails once, for every N": the loops around a scenario that uses a device.
 *
 * A scenario opens, works and closes, each fallible call in a FAULT_STEP: one that fails must leave
 * what `look` sees as it was and, since only one call fails, must succeed when it is tried again.
 * The rig opens the devices, runs the scenario with call 0, 1, 2... failing until a run meets no
 * failure, and holds every run to: no more failures seen than there were, and nothing left of
 * device objects, allocations or descriptors. Threads: one. */
#ifndef PLLM_TESTS_FAULT_RIG_H
#define PLLM_TESTS_FAULT_RIG_H

#include "device/device.h"
#include "failing_context.h"

/* One run; a scenario's own world may hold a pointer to it. */
typedef struct fault_run {
    const pllm_context *context; /* of all that the scenario opens */
    pllm_device *inner, *device; /* device: the faulty one around inner; the rig's to close */
    int expected;                /* the status a failed step must have; 0: any failure */
    uint32_t failures;           /* steps that failed */
    failing_context memory;
} fault_run;

typedef struct fault_scenario {
    const char *name; /* for what is printed: of the device */
    int (*open)(const pllm_context *context, pllm_device **inner);
    void (*run)(fault_run *run); /* closes what it opened */
    int told;                    /* each failed allocation fails a step: none is borne quietly */
    uint64_t device_floor; /* at least so many device calls: else the scenario has lost some */
    uint64_t allocation_floor;
} fault_scenario;

/* For `open`: the two devices that need no driver, with 4 MiB. */
int fault_open_sim(const pllm_context *context, pllm_device **inner);
int fault_open_host(const pllm_context *context, pllm_device **inner);

/* fail_async: a failed copy is told by its event (device.h). */
void fault_each_device_call(const fault_scenario *scenario, uint32_t fail_async);
void fault_each_allocation(const fault_scenario *scenario);

/* The ends of one run, for other ways to fail than those. In place; the run must not move. Closing
 * asserts that nothing is left. */
void fault_run_open(fault_run *run, const fault_scenario *scenario, uint64_t fail_device,
                    uint32_t fail_async, uint64_t fail_allocation);
void fault_run_close(fault_run *run);

/* run: a fault_run; look(w): an expression of type snapshot, without padding; same(before, after):
 * a statement that asserts. FAULT_SAME is the plain one. */
#define FAULT_STEP(run_, snapshot, look_, same, call)                          \
    do {                                                                       \
        snapshot before_ = look_;                                              \
        int status_ = (call);                                                  \
        if (status_ < 0) {                                                     \
            snapshot after_ = look_;                                           \
            if ((run_)->expected) assert_int_equal(status_, (run_)->expected); \
            (run_)->failures++;                                                \
            same(before_, after_);                                             \
            status_ = (call);                                                  \
        }                                                                      \
        assert_int_equal(status_, PLLM_OK);                                    \
    } while (0)
#define FAULT_SAME(before, after) assert_memory_equal(&(before), &(after), sizeof(before))

#endif
