/* parts.h - what an engine was opened with, for the commands that need more than its public face.
 */
#ifndef PLLM_ENGINE_PARTS_H
#define PLLM_ENGINE_PARTS_H

#include <pagedllm/engine.h>
#include "model/tokenizer.h"
#include "tier/disk.h"
#include "device/device.h"

/* As pllm_engine_open, on a device and a disk of the caller's. device: borrowed, NULL: opened as
 * the options say. disk: taken over, also on failure; NULL: opened as the options say. */
int pllm_engine_open_on(const pllm_context *context, const char *path,
                        const pllm_engine_options *options, pllm_device *device, pllm_disk *disk,
                        pllm_engine **engine_out);
/* The device that an engine with these options would open for itself. Errors: EINVAL (no such
 * name), EUNSUPPORTED, EDEVICE, ENOMEM. */
int pllm_engine_open_device(const pllm_context *context, const pllm_engine_options *options,
                            pllm_device **device_out);
/* Writes the accesses recorded so far (options.record_max) as a trace that pager/replay.h reads.
 * Errors: ENOTFOUND (nothing was recorded), EIO, ENOMEM. */
int pllm_engine_write_trace(const pllm_engine *engine, const char *path);
/* The invariants of kv_cache.h and pager.h, checked; for tests. */
void pllm_engine_check(const pllm_engine *engine);

/* The key summary of a sealed block, pllm_kv_summary_bytes of it (kernels/kv_summary.h), wherever
 * the block is. Between steps. Errors: EUNSUPPORTED (options.key_summaries is off), EINVAL (no such
 * block), and those of a copy. */
int pllm_engine_read_summary(const pllm_engine *engine, const pllm_sequence *sequence,
                             uint32_t layer, uint32_t block, void *summary_out);

pllm_device *pllm_engine_device(const pllm_engine *engine);             /* borrowed */
const pllm_model *pllm_engine_model(const pllm_engine *engine);         /* borrowed */
const pllm_tokenizer *pllm_engine_tokenizer(const pllm_engine *engine); /* NULL: it has none */

#endif
