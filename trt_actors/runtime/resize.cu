// Resizes decoded RGB images of any size to one size, as Pillow's bilinear filter does it bit for bit: weights in
// double precision turned into integers of 22 fractional bits, along rows first, rounded to 8 bits, then along
// columns. (Pillow 13 takes much too tall images the other way round, which differs by one level at most.) On the
// way an image is turned upright.
//
// One row of `table` describes one image; the columns are named below. Weights of an axis lie one behind the
// other: for each position the place of its first pixel, the number of pixels, and room for `taps` weights.

typedef unsigned char u8;
typedef long long i64;

enum Column {
    SOURCE, // address of its first pixel
    ROW_BYTES,
    HEIGHT, // as stored
    WIDTH,
    ORIENTATION, // as EXIF counts
    STRIP, // where in `strips` its rows of the right width begin
    ACROSS, // where in `made` the weights along rows begin
    ACROSS_TAPS,
    DOWN, // and those along columns
    DOWN_TAPS,
    TARGET, // which of the images it becomes
    COLUMNS
};

enum { FRACTION_BITS = 22 };

__device__ static bool is_turned(i64 orientation) { return orientation >= 5; }

__device__ static u8 rounded(int sum)
{
    int value = sum >> FRACTION_BITS;
    return (u8)(value < 0 ? 0 : value > 255 ? 255 : value);
}

__device__ static double triangle(double x)
{
    double distance = x < 0.0 ? -x : x;
    return distance < 1.0 ? 1.0 - distance : 0.0;
}

__device__ static void weigh(int* made, int position, i64 from, int to)
{
    double scale = (double)from / (double)to;
    double support = scale < 1.0 ? 1.0 : scale;
    double inverse = 1.0 / support;
    // A multiplication fused with what follows it would change the last bits.
    double centre = __dmul_rn(position + 0.5, scale);
    int first = (int)(centre - support + 0.5);
    int last = (int)(centre + support + 0.5);
    if (first < 0) first = 0;
    if (last > from) last = (int)from;
    double total = 0.0;
    for (int i = first; i < last; i++) total += triangle(__dmul_rn(i - centre + 0.5, inverse));
    made[0] = first;
    made[1] = last - first;
    for (int i = first; i < last; i++) {
        double weight = triangle(__dmul_rn(i - centre + 0.5, inverse));
        if (total != 0.0) weight /= total;
        made[2 + i - first] = (int)(0.5 + weight * (1 << FRACTION_BITS));
    }
}

// Grid: x over positions of both axes, y over images.
extern "C" __global__ void weights(const i64* table, int* made, int height, int width)
{
    const i64* image = table + (i64)blockIdx.y * COLUMNS;
    int position = blockIdx.x * blockDim.x + threadIdx.x;
    bool turned = is_turned(image[ORIENTATION]);
    if (position < width) {
        i64 from = turned ? image[HEIGHT] : image[WIDTH];
        weigh(made + image[ACROSS] + position * (image[ACROSS_TAPS] + 2), position, from, width);
    } else if (position < width + height) {
        i64 from = turned ? image[WIDTH] : image[HEIGHT];
        position -= width;
        weigh(made + image[DOWN] + position * (image[DOWN_TAPS] + 2), position, from, height);
    }
}

// Upright rows of the right width, all rows of the source. Grid: x over their pixels, y over images.
extern "C" __global__ void across(const i64* table, const int* made, u8* strips, int width)
{
    const i64* image = table + (i64)blockIdx.y * COLUMNS;
    i64 orientation = image[ORIENTATION], high = image[HEIGHT], wide = image[WIDTH];
    bool turned = is_turned(orientation);
    i64 pixel = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    i64 y = pixel / width;
    int x = (int)(pixel % width);
    if (y >= (turned ? wide : high)) return;

    // Where the upright row begins in the source, and how far apart its pixels are there.
    i64 row_bytes = image[ROW_BYTES], start, step;
    switch (orientation) {
    case 2: start = y * row_bytes + (wide - 1) * 3, step = -3; break;
    case 3: start = (high - 1 - y) * row_bytes + (wide - 1) * 3, step = -3; break;
    case 4: start = (high - 1 - y) * row_bytes, step = 3; break;
    case 5: start = y * 3, step = row_bytes; break;
    case 6: start = (high - 1) * row_bytes + y * 3, step = -row_bytes; break;
    case 7: start = (high - 1) * row_bytes + (wide - 1 - y) * 3, step = -row_bytes; break;
    case 8: start = (wide - 1 - y) * 3, step = row_bytes; break;
    default: start = y * row_bytes, step = 3;
    }
    const int* weights = made + image[ACROSS] + x * (image[ACROSS_TAPS] + 2);
    const u8* source = (const u8*)image[SOURCE] + start + weights[0] * step;
    int count = weights[1], red = 1 << (FRACTION_BITS - 1), green = red, blue = red;
    for (int i = 0; i < count; i++, source += step) {
        int weight = weights[2 + i];
        red += source[0] * weight;
        green += source[1] * weight;
        blue += source[2] * weight;
    }
    u8* target = strips + image[STRIP] + pixel * 3;
    target[0] = rounded(red);
    target[1] = rounded(green);
    target[2] = rounded(blue);
}

// The images themselves, in any layout: bytes from row to row, pixel to pixel and channel to channel.
// Grid: x over their pixels, y over images.
extern "C" __global__ void down(const i64* table, const int* made, const u8* strips, u8* images, int height,
    int width, int row_step, int pixel_step, int channel_step)
{
    const i64* image = table + (i64)blockIdx.y * COLUMNS;
    int pixel = blockIdx.x * blockDim.x + threadIdx.x;
    int y = pixel / width, x = pixel % width;
    if (y >= height) return;
    const int* weights = made + image[DOWN] + y * (image[DOWN_TAPS] + 2);
    const u8* source = strips + image[STRIP] + ((i64)weights[0] * width + x) * 3;
    int count = weights[1], red = 1 << (FRACTION_BITS - 1), green = red, blue = red;
    for (int i = 0; i < count; i++, source += (i64)width * 3) {
        int weight = weights[2 + i];
        red += source[0] * weight;
        green += source[1] * weight;
        blue += source[2] * weight;
    }
    u8* target = images + image[TARGET] * ((i64)height * width * 3) + (i64)y * row_step + (i64)x * pixel_step;
    target[0] = rounded(red);
    target[channel_step] = rounded(green);
    target[2 * channel_step] = rounded(blue);
}
