/* npy.h - the header of a .npy file: one array's type and shape.
 *
 * Layout: "\x93NUMPY", major, minor, the length of the text (u16 in 1.0, u32 in 2.0,
 * little-endian), the text (a Python dict with descr, fortran_order and shape), then the elements.
 * Source: the format's description in NumPy's documentation (numpy.lib.format).
 *
 * Read: versions 1.0 and 2.0, C order, little-endian, f2 f4 f8 i1 i2 i4 i8 u1 b1. All else is
 * refused with a sentence. Pure functions. */
#ifndef PLLM_MODEL_NPY_H
#define PLLM_MODEL_NPY_H

#include "base/context.h"

enum { PLLM_NPY_RANK_MAX = 8, PLLM_NPY_HEADER_BYTES_MAX = 448 };

typedef struct pllm_npy {
    char kind; /* 'f', 'i', 'u', or 'b' for bool */
    uint32_t element_bytes, rank;
    uint64_t shape[PLLM_NPY_RANK_MAX]; /* those past rank are 0 */
    uint64_t data_offset, data_bytes;
} pllm_npy;

/* data: the whole file; file is for the sentences. It holds data_bytes from data_offset to its end.
 * Errors: ECORRUPT (no .npy, or cut), EUNSUPPORTED (Fortran order, another type or version, more
 * than 8 dimensions), ELIMIT (a shape that overflows). */
int pllm_npy_parse(const char *file, const uint8_t *data, uint64_t bytes, pllm_npy *npy_out);

/* A header of version 1.0 for kind, element_bytes, rank and shape; returns its length, a multiple
 * of 64. */
uint32_t pllm_npy_header(const pllm_npy *npy, uint8_t header[PLLM_NPY_HEADER_BYTES_MAX]);

#endif
