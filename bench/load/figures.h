/* figures.h: what the load generator counts, one `struct figures` per thread, and the JSON that it prints of them. */
#ifndef FIGURES_H
#define FIGURES_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#define NAME_SIZE 64           /* of whoever answered, with its final NUL */
#define NAMES 4096             /* slots of the table of names: a power of two, four times max_workers */

/* Histogram of nanoseconds: 128 steps per power of two, so every value is known to better than 1 %. */
#define STEP_BITS 7
#define BUCKETS ((64 - STEP_BITS + 1) << STEP_BITS)
#define PRINTED_STEPS 4 /* so many steps are printed as one: 3 % is enough for a plot */

enum error { REFUSED, RESET, TIMEOUT, SHORT, WRONG, NO_PORT, UNSENT, OTHER, ERRORS };
static const char *const error_names[ERRORS] = {
    "refused", /* ECONNREFUSED */
    "reset",   /* ECONNRESET or EPIPE, before the answer was complete */
    "timeout", /* no complete answer in TIMEOUT_SECONDS */
    "short",   /* end-of-file before the answer was complete */
    "wrong",   /* another echo than the bytes sent; HTTP: not a 200, or not HTTP at all */
    "no_port", /* EADDRNOTAVAIL or EADDRINUSE: ephemeral ports ran out after all */
    "unsent",  /* open loop: its time had come, but all connections were taken until the end */
    "other",   /* any other errno; the last one is reported as "last_errno" */
};

struct name {
    char text[NAME_SIZE];
    uint64_t count;
};

struct histogram {
    uint64_t count, max, buckets[BUCKETS];
};

struct figures {
    uint64_t completed; /* answers, those in the warm-up too */
    uint64_t connects;  /* attempts */
    uint64_t requests;  /* answers that count */
    uint64_t answered;  /* answers that came in the time that counts: in an open loop not those of `requests` */
    uint64_t errors[ERRORS];
    struct histogram latency;
    struct histogram late; /* open loop: how long after it could have begun a request did, by this program's fault */
    int last_errno;
    struct name names[NAMES];
};

static size_t bucket(uint64_t ns)
{
    if (ns < (2u << STEP_BITS))
        return (size_t)ns;
    int shift = 63 - __builtin_clzll(ns) - STEP_BITS;
    return ((size_t)shift << STEP_BITS) + (size_t)(ns >> shift);
}

static double bucket_middle(size_t index)
{
    if (index < (2u << STEP_BITS))
        return (double)index;
    unsigned shift = (unsigned)(index >> STEP_BITS) - 1;
    uint64_t low = (uint64_t)(index - ((size_t)shift << STEP_BITS)) << shift;
    return (double)low + (double)(1ull << shift) / 2;
}

static void count_ns(struct histogram *h, uint64_t ns)
{
    h->buckets[bucket(ns)]++;
    h->count++;
    if (ns > h->max)
        h->max = ns;
}

static void count_name(struct name *table, const char *text, size_t size, uint64_t count)
{
    char key[NAME_SIZE] = {0};
    memcpy(key, text, size < NAME_SIZE - 1 ? size : NAME_SIZE - 1);
    uint64_t hash = 14695981039346656037ull; /* FNV-1a */
    for (const char *c = key; *c; c++)
        hash = (hash ^ (unsigned char)*c) * 1099511628211ull;
    for (size_t probe = 0; probe < NAMES; probe++) {
        struct name *n = &table[(hash + probe) % NAMES];
        if (n->count == 0)
            memcpy(n->text, key, NAME_SIZE);
        if (strcmp(n->text, key) == 0) {
            n->count += count;
            return;
        }
    }
    /* More than NAMES names: the answers are no identities; the sum of shares then falls short of requests. */
}

static void merge_histogram(struct histogram *sum, const struct histogram *h)
{
    sum->count += h->count;
    if (h->max > sum->max)
        sum->max = h->max;
    for (size_t i = 0; i < BUCKETS; i++)
        sum->buckets[i] += h->buckets[i];
}

static void merge(struct figures *sum, const struct figures *f)
{
    sum->completed += f->completed;
    sum->connects += f->connects;
    sum->requests += f->requests;
    sum->answered += f->answered;
    merge_histogram(&sum->latency, &f->latency);
    merge_histogram(&sum->late, &f->late);
    if (f->last_errno)
        sum->last_errno = f->last_errno;
    for (int i = 0; i < ERRORS; i++)
        sum->errors[i] += f->errors[i];
    for (size_t i = 0; i < NAMES; i++)
        if (f->names[i].count)
            count_name(sum->names, f->names[i].text, strlen(f->names[i].text), f->names[i].count);
}

static double percentile_us(const struct histogram *h, double part)
{
    uint64_t rank = (uint64_t)((double)h->count * part), seen = 0;
    if (rank >= h->count)
        rank = h->count - 1;
    for (size_t i = 0; i < BUCKETS; i++)
        if ((seen += h->buckets[i]) > rank) {
            double ns = bucket_middle(i);
            return (ns < (double)h->max ? ns : (double)h->max) / 1e3;
        }
    return 0;
}

static void print_string(const char *text)
{
    putchar('"');
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c < 0x20 || c > 0x7e || c == '"' || c == '\\')
            printf("\\u%04x", c);
        else
            putchar(c);
    }
    putchar('"');
}

static void print_histogram(const struct histogram *h)
{
    bool comma = false;
    putchar('[');
    for (size_t i = 0; i < BUCKETS; i += PRINTED_STEPS) {
        uint64_t count = 0;
        for (size_t k = i; k < i + PRINTED_STEPS; k++)
            count += h->buckets[k];
        if (count) {
            printf("%s[%.1f, %llu]", comma ? ", " : "", bucket_middle(i + PRINTED_STEPS / 2) / 1e3,
                   (unsigned long long)count);
            comma = true;
        }
    }
    putchar(']');
}

/* `seconds` of counting, `elapsed` from the start of the load to its end. */
static void print_figures(const struct figures *f, double seconds, double elapsed)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)
                 + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    printf("{\"requests\": %llu, \"seconds\": %.6f, \"rate\": %.3f, \"connects\": %llu, \"completed\": %llu,\n",
           (unsigned long long)f->requests, seconds, seconds > 0 ? (double)f->answered / seconds : 0,
           (unsigned long long)f->connects, (unsigned long long)f->completed);
    /* cpu_seconds near threads * elapsed_seconds: this program was the bottleneck, not the server */
    printf(" \"elapsed_seconds\": %.6f, \"cpu_seconds\": %.6f, \"last_errno\": %d,\n \"errors\": {", elapsed, cpu,
           f->last_errno);
    for (int i = 0; i < ERRORS; i++)
        printf("%s\"%s\": %llu", i ? ", " : "", error_names[i], (unsigned long long)f->errors[i]);
    const struct histogram *latency = &f->latency;
    printf("},\n \"late_p50_us\": %.1f, \"late_p99_us\": %.1f,\n", percentile_us(&f->late, 0.5),
           percentile_us(&f->late, 0.99));
    printf(" \"latency_us\": {\"count\": %llu, \"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f,",
           (unsigned long long)latency->count, percentile_us(latency, 0.5), percentile_us(latency, 0.9),
           percentile_us(latency, 0.99));
    printf(" \"p999\": %.1f, \"max\": %.1f},\n \"histogram\": ", percentile_us(latency, 0.999),
           (double)latency->max / 1e3);
    print_histogram(latency);
    printf(",\n \"shares\": {");
    bool comma = false;
    for (size_t i = 0; i < NAMES; i++)
        if (f->names[i].count) {
            fputs(comma ? ", " : "", stdout);
            print_string(f->names[i].text);
            printf(": %llu", (unsigned long long)f->names[i].count);
            comma = true;
        }
    printf("}}\n");
}

#endif
