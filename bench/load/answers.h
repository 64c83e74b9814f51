/* answers.h: what an answer says so far: whether it is complete, right, and who gave it. Reads no socket. */
#ifndef ANSWERS_H
#define ANSWERS_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "figures.h"

#define ANSWER_KEPT 8192 /* bytes of an answer that are looked at; the rest is only counted */

struct answer {
    const char *text;
    size_t got;          /* may be more than is kept */
    const char *request; /* echo: of so many bytes, which the answer repeats */
    size_t bytes;
    bool identify, keepalive;
};

struct slice { const char *text; size_t size; };

static struct slice line_at(const char *text, const char *end)
{
    size_t size = 0;
    while (text + size < end && text[size] != '\r' && text[size] != '\n')
        size++;
    return (struct slice){text, size};
}

enum verdict { FAILED, WAIT, COMPLETE, COMPLETE_CLOSE }; /* the last: the connection cannot be used again */

static enum verdict echo_verdict(const struct answer *a, bool eof, struct slice *name, enum error *kind)
{
    size_t same = a->got < a->bytes ? a->got : a->bytes;
    size_t expected = a->bytes;
    *kind = WRONG;
    if (memcmp(a->text, a->request, same) != 0)
        return FAILED;
    if (a->identify && a->got > a->bytes) {
        const char *line = a->text + a->bytes;
        const char *newline = memchr(line, '\n', a->got - a->bytes);
        if (newline == NULL && a->got - a->bytes >= NAME_SIZE)
            return FAILED;
        expected = newline ? (size_t)(newline + 1 - a->text) : a->got + 1;
        if (newline)
            *name = (struct slice){line, (size_t)(newline - line)};
    } else if (a->identify)
        expected = a->bytes + 1;
    if (a->got > expected)
        return FAILED;
    if (a->got == expected)
        return eof ? COMPLETE_CLOSE : COMPLETE;
    *kind = SHORT;
    return eof ? FAILED : WAIT;
}

/* The value of a header, without a value when there is none. */
static struct slice header(const char *head, const char *end, const char *field)
{
    size_t size = strlen(field);
    while (head < end) {
        struct slice line = line_at(head, end);
        if (line.size > size && line.text[size] == ':' && strncasecmp(line.text, field, size) == 0) {
            const char *value = line.text + size + 1, *stop = line.text + line.size;
            while (value < stop && *value == ' ')
                value++;
            return (struct slice){value, (size_t)(stop - value)};
        }
        head = line.text + line.size + 1; /* an empty line between CR and LF does no harm */
    }
    return (struct slice){NULL, 0};
}

static bool says(struct slice value, const char *word)
{
    return value.text && value.size == strlen(word) && strncasecmp(value.text, word, value.size) == 0;
}

static enum verdict http_verdict(const struct answer *a, bool eof, struct slice *name, enum error *kind)
{
    size_t kept = a->got < ANSWER_KEPT ? a->got : ANSWER_KEPT;
    const char *end = a->text + kept;
    const char *blank = memmem(a->text, kept, "\r\n\r\n", 4);
    if (blank == NULL) {
        *kind = kept == ANSWER_KEPT ? WRONG : SHORT;
        return eof || kept == ANSWER_KEPT ? FAILED : WAIT;
    }
    *kind = WRONG;
    if (strncmp(a->text, "HTTP/1.", 7) != 0 || strncmp(a->text + 8, " 200", 4) != 0)
        return FAILED;

    const char *body = blank + 4;
    struct slice length = header(a->text, body, "Content-Length");
    struct slice connection_value = header(a->text, body, "Connection");
    bool chunked = says(header(a->text, body, "Transfer-Encoding"), "chunked");
    bool whole;
    if (chunked)
        /* Only the end is looked at, so the answer must fit; the bodies asked for here are a line long. */
        whole = a->got <= ANSWER_KEPT && kept >= 5 && memcmp(end - 5, "0\r\n\r\n", 5) == 0;
    else if (length.text)
        whole = a->got - (size_t)(body - a->text) >= strtoull(length.text, NULL, 10);
    else
        whole = eof;
    if (!whole) {
        *kind = SHORT;
        return eof ? FAILED : WAIT;
    }
    if (!eof && !a->keepalive)
        return WAIT; /* "Connection: close" was asked for: the end-of-file belongs to the answer */

    const char *first = body;
    if (chunked) { /* the first line is the size of the chunk */
        first += line_at(body, end).size;
        first += end - first > 2 ? 2 : end - first;
    }
    *name = line_at(first, end);
    bool old = a->text[7] == '0' && !says(connection_value, "keep-alive");
    return eof || old || says(connection_value, "close") ? COMPLETE_CLOSE : COMPLETE;
}

#endif
