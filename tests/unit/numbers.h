/* What a test's program is given: 64-bit numbers in the machine's own byte order, on stdin. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "fault.h"

static uint64_t given(void)
{
    uint64_t number;

    if (fread(&number, sizeof number, 1, stdin) != 1) {
        fputs("a number is missing\n", stderr);
        exit(2);
    }
    return number;
}

static int refused(const char *fault)
{
    printf("refused: %s\n", *fault ? fault : "no memory");
    return 0;
}
