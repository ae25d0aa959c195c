/* plot.c - a line plot as SVG: a few dozen elements of text, no library.
 *
 *   +---------------------------+
 *   |  title                    |      both axes logarithmic: contexts double, and speeds of
 *   |  y |            -o- line  |      batches and contexts lie decades apart. Ticks: x where the
 *   |    +------------          |      points are, y at 1, 2, 5 of each decade.
 *   |       x                   |
 *   +---------------------------+ */
#include <math.h>
#include <stdio.h>
#include "cli/bench.h"

enum { WIDTH = 760, HEIGHT = 440, LEFT = 80, RIGHT = 590, TOP = 50, BOTTOM = 380 };

typedef struct frame {
    FILE *file;
    double x_least, x_most, y_least, y_most; /* logarithms */
} frame;

/* From dark to light, told apart without colour by the marks' order in the legend. */
static const char *const colours[] = {"#1b4f8a", "#c05621", "#2f855a", "#805ad5",
                                      "#b7791f", "#319795", "#97266d", "#4a5568"};

static double at_x(const frame *f, double x)
{
    return LEFT + (log10(x) - f->x_least) / (f->x_most - f->x_least) * (RIGHT - LEFT);
}

static double at_y(const frame *f, double y)
{
    return BOTTOM - (log10(y) - f->y_least) / (f->y_most - f->y_least) * (BOTTOM - TOP);
}

static void print_escaped(FILE *file, const char *text)
{
    for (; *text; text++) {
        if (*text == '<')
            fputs("&lt;", file);
        else if (*text == '&')
            fputs("&amp;", file);
        else
            fputc(*text, file);
    }
}

static void put_text(const frame *f, double x, double y, const char *anchor, const char *text)
{
    fprintf(f->file, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", x, y, anchor);
    print_escaped(f->file, text);
    fputs("</text>\n", f->file);
}

static void put_line(const frame *f, double x1, double y1, double x2, double y2, const char *colour)
{
    fprintf(f->file, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\"/>\n", x1,
            y1, x2, y2, colour);
}

/* The logarithm of the nearest 1, 2 or 5 of a decade that is not above value, or not below. */
static double whole_step(double value, int above)
{
    double decade = pow(10, floor(log10(value))), found = decade;
    for (int i = 1; i < 4; i++) {
        double step = (double[]){1, 2, 5, 10}[i] * decade;
        if (above ? found < value : step <= value) found = step;
    }
    return log10(found);
}

/* Ends at whole steps of 1, 2, 5 on y, and a little beyond the points on x. 0: no point at all. */
static int find_range(frame *f, const plot_line *lines, uint32_t line_count)
{
    double least = INFINITY, most = 0, left = INFINITY, right = 0;
    for (uint32_t i = 0; i < line_count; i++)
        for (uint32_t j = 0; j < lines[i].count; j++) {
            double x = lines[i].x[j], y = lines[i].y[j];
            if (!(x > 0) || !(y > 0)) continue;
            least = y < least ? y : least;
            most = y > most ? y : most;
            left = x < left ? x : left;
            right = x > right ? x : right;
        }
    if (!(most > 0)) return 0;
    f->x_least = log10(left) - 0.1;
    f->x_most = log10(right) + 0.1;
    f->y_least = whole_step(least * 0.97, 0);
    f->y_most = whole_step(most * 1.03, 1);
    return 1;
}

static void put_y_axis(const frame *f, const char *title)
{
    for (int decade = (int)floor(f->y_least); decade <= f->y_most; decade++)
        for (int i = 0; i < 3; i++) {
            double y = (double[]){1, 2, 5}[i] * pow(10, decade);
            char text[32];
            if (log10(y) < f->y_least - 1e-9 || log10(y) > f->y_most + 1e-9) continue;
            put_line(f, LEFT, at_y(f, y), RIGHT, at_y(f, y), "#e2e8f0");
            snprintf(text, sizeof text, "%g", y);
            put_text(f, LEFT - 8, at_y(f, y) + 4, "end", text);
        }
    put_line(f, LEFT, TOP, LEFT, BOTTOM, "#4a5568");
    fprintf(f->file, "<text transform=\"translate(22 %d) rotate(-90)\" text-anchor=\"middle\">",
            (TOP + BOTTOM) / 2);
    print_escaped(f->file, title);
    fputs("</text>\n", f->file);
}

static void put_x_axis(const frame *f, const char *title, const plot_line *lines,
                       uint32_t line_count)
{
    double last[PLOT_LINE_MAX * 2];
    uint32_t last_count = 0;
    for (uint32_t i = 0; i < line_count; i++)
        for (uint32_t j = 0; j < lines[i].count; j++) {
            double x = lines[i].x[j];
            int near = !(x > 0);
            for (uint32_t k = 0; k < last_count; k++)
                near |= fabs(at_x(f, x) - last[k]) < 36; /* labels would overlap */
            if (near || last_count == PLOT_LINE_MAX * 2) continue;
            char text[32];
            if (x >= 1024 && fmod(x, 1024) == 0)
                snprintf(text, sizeof text, "%gK", x / 1024);
            else
                snprintf(text, sizeof text, "%g", x);
            last[last_count++] = at_x(f, x);
            put_line(f, at_x(f, x), BOTTOM, at_x(f, x), BOTTOM + 5, "#4a5568");
            put_text(f, at_x(f, x), BOTTOM + 20, "middle", text);
        }
    put_line(f, LEFT, BOTTOM, RIGHT, BOTTOM, "#4a5568");
    put_text(f, (LEFT + RIGHT) / 2.0, BOTTOM + 44, "middle", title);
}

static void put_points(const frame *f, const plot_line *line, uint32_t index)
{
    const char *colour = colours[index % (sizeof colours / sizeof colours[0])];
    fprintf(f->file, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\" points=\"", colour);
    for (uint32_t i = 0; i < line->count; i++)
        if (line->x[i] > 0 && line->y[i] > 0)
            fprintf(f->file, "%.1f,%.1f ", at_x(f, line->x[i]), at_y(f, line->y[i]));
    fputs("\"/>\n", f->file);
    for (uint32_t i = 0; i < line->count; i++)
        if (line->x[i] > 0 && line->y[i] > 0)
            fprintf(f->file,
                    "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"%s\"><title>%.4g</title>"
                    "</circle>\n",
                    at_x(f, line->x[i]), at_y(f, line->y[i]), colour, line->y[i]);
    double y = TOP + 10 + 20.0 * index;
    fprintf(f->file,
            "<line x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"%s\" "
            "stroke-width=\"2\"/>\n",
            RIGHT + 16, y, RIGHT + 40, y, colour);
    put_text(f, RIGHT + 46, y + 4, "start", line->name);
}

int plot_write(FILE *file, const char *title, const char *x_title, const char *y_title,
               const plot_line *lines, uint32_t line_count)
{
    frame f = {.file = file};
    fprintf(file,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d "
            "%d\" font-family=\"sans-serif\" font-size=\"13\" fill=\"#1a202c\">\n<rect "
            "width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
            WIDTH, HEIGHT, WIDTH, HEIGHT);
    put_text(&f, LEFT, TOP - 22, "start", title);
    if (find_range(&f, lines, line_count)) {
        put_y_axis(&f, y_title);
        put_x_axis(&f, x_title, lines, line_count);
        for (uint32_t i = 0; i < line_count; i++) put_points(&f, &lines[i], i);
    } else {
        put_text(&f, WIDTH / 2.0, HEIGHT / 2.0, "middle", "nothing was measured");
    }
    fputs("</svg>\n", file);
    return ferror(file) ? PLLM_EIO : PLLM_OK;
}
