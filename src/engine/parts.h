/* parts.h - what an engine was opened with, for the commands that need more than its public face.
 */
#ifndef PLLM_ENGINE_PARTS_H
#define PLLM_ENGINE_PARTS_H

#include <pagedllm/engine.h>
#include "model/tokenizer.h"

const pllm_model *pllm_engine_model(const pllm_engine *engine);         /* borrowed */
const pllm_tokenizer *pllm_engine_tokenizer(const pllm_engine *engine); /* NULL: it has none */

#endif
