/* SmolLM2 on a GPU: tests/reference/test_smollm2_engine.c, on this device. */
#define TEST_DEVICE "cuda"
#define TEST_AUTO_GAP 0.3f
#include "../reference/test_smollm2_engine.c"
