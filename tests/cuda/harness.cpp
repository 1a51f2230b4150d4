// Runs kernels for a test: reads launches from its input, writes what became of their arrays to its output.
//
// The test makes two files beside it: kernels.inc, which includes the kernels, and names.inc, `LAUNCH(name)` for each.
// A launch: length and letters of the name, grid and block (3 numbers each), bytes of shared memory, 1 for falling
// order, number of arguments, each with a letter for what it is: a number (i 32 bits, l 64 bits, f float, d double),
// an array (p: length and size of an element, then its bytes) or nothing (0). All numbers are u32 but for those that
// are arguments. The answer: the bytes of every array.

#include "emulation.hpp"
#include "kernels.inc"

#include <map>
#include <string>
#include <type_traits>

namespace harness {

static const size_t GUARD = 256;

struct Argument {
    char kind;
    char number[8];
    unsigned element;
    size_t length;
    std::vector<char> memory;

    // Behind a guard, at a multiple of 256 bytes, as on a GPU.
    char* array() { return (char*)(((size_t)memory.data() + GUARD + 255) / 256 * 256); }
};

static void read(void* to, size_t bytes) {
    if (fread(to, 1, bytes, stdin) != bytes) emulation::fail("the input ends within a launch");
}

static unsigned read_number() {
    unsigned number;
    read(&number, sizeof number);
    return number;
}

static std::string where;

[[noreturn]] static void wrong(const char* what) { emulation::fail((where + ": " + what).c_str()); }

template <class T> static T taken(Argument& argument) {
    if constexpr (std::is_pointer_v<T>) {
        if (argument.kind == '0') return nullptr;
        if (argument.kind != 'p') wrong("a number for an array");
        if (argument.element != sizeof(std::remove_pointer_t<T>)) wrong("elements of another size");
        return (T)argument.array();
    } else {
        const char kind = std::is_floating_point_v<T> ? (sizeof(T) == 8 ? 'd' : 'f') : (sizeof(T) == 8 ? 'l' : 'i');
        if (argument.kind != kind) wrong("an argument of another kind");
        T number;
        memcpy(&number, argument.number, sizeof number);
        return number;
    }
}

typedef std::function<std::function<void()>(std::vector<Argument>&)> Launch;

template <class... T, size_t... I>
static std::function<void()> bound(void (*kernel)(T...), std::vector<Argument>& arguments, std::index_sequence<I...>) {
    return std::bind(kernel, taken<T>(arguments[I])...);
}

template <class... T> static Launch launch_of(void (*kernel)(T...)) {
    return [kernel](std::vector<Argument>& arguments) {
        if (arguments.size() != sizeof...(T)) wrong("another number of arguments");
        return bound(kernel, arguments, std::make_index_sequence<sizeof...(T)>());
    };
}

static const std::map<std::string, Launch> KERNELS = {
#define LAUNCH(name) {#name, launch_of(name)},
#include "names.inc"
};

static void guard(Argument& argument) {
    const char* const end = argument.array() + argument.length;
    const auto written = [](char c) { return c != (char)0xff; };
    if (std::any_of(argument.array() - GUARD, argument.array(), written) || std::any_of(end, end + GUARD, written)) {
        wrong("wrote outside an array");
    }
}

static Argument read_argument() {
    Argument argument;
    read(&argument.kind, 1);
    if (argument.kind == 'p') {
        argument.length = read_number();
        argument.element = read_number();
        argument.memory.assign(argument.length + 2 * GUARD + 256, (char)0xff);
        read(argument.array(), argument.length);
    } else if (argument.kind != '0') {
        read(argument.number, argument.kind == 'l' || argument.kind == 'd' ? 8 : 4);
    }
    return argument;
}

static void run() {
    where.resize(read_number());
    read(&where[0], where.size());
    unsigned sizes[6];
    read(sizes, sizeof sizes);
    const unsigned shared_bytes = read_number(), falling = read_number();
    std::vector<Argument> arguments(read_number());
    for (Argument& argument : arguments) argument = read_argument();
    const auto kernel = KERNELS.find(where);
    if (kernel == KERNELS.end()) wrong("there is no such kernel");
    emulation::launch(dim3{sizes[0], sizes[1], sizes[2]}, dim3{sizes[3], sizes[4], sizes[5]}, shared_bytes, falling,
                      kernel->second(arguments));
    for (Argument& argument : arguments) {
        if (argument.kind != 'p') continue;
        guard(argument);
        fwrite(argument.array(), 1, argument.length, stdout);
    }
    fflush(stdout);
}

} // namespace harness

int main() {
    for (int c = getchar(); c != EOF; c = getchar()) {
        ungetc(c, stdin);
        harness::run();
    }
}
