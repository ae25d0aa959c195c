/* options_internal.h - what parsing and help share. */
#ifndef PLLM_BASE_OPTIONS_INTERNAL_H
#define PLLM_BASE_OPTIONS_INTERNAL_H

#include "base/options.h"

/* "vram_limit" as "--vram-limit". */
void pllm_option_flag(const char *name, char *flag, size_t flag_bytes);
/* command NULL stands for any. */
bool pllm_command_takes(const pllm_command *command, const pllm_option *option);

#endif
