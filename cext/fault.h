/* Why something was refused, in words. */
#ifndef EVENLINK_FAULT_H
#define EVENLINK_FAULT_H

#include <stdarg.h>
#include <stdio.h>

enum { FAULT_LENGTH = 160 };

static inline __attribute__((format(printf, 2, 3))) int fault_say(char *fault, const char *format,
                                                                  ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(fault, FAULT_LENGTH, format, arguments);
    va_end(arguments);
    return -1;
}

#endif
