// The kernels as a library, for a test that launches them over the processor's own memory: arguments are 64 bits each,
// and a letter for what they are (p a place, i 32 bits, l 64 bits, f float, d double).

#include "emulation.hpp"
#include "kernels.inc"

#include <map>
#include <string>
#include <type_traits>

typedef unsigned long long Bits;
typedef std::function<std::function<void()>(const char*, const Bits*)> Launch;

static std::string where;

template <class T> static T taken(char kind, Bits bits) {
    const char expected = std::is_pointer_v<T>          ? 'p'
                          : std::is_same_v<T, float>  ? 'f'
                          : std::is_same_v<T, double> ? 'd'
                          : sizeof(T) == 8            ? 'l'
                                                      : 'i';
    if (kind != expected) emulation::fail((where + ": an argument of another kind").c_str());
    T value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

template <class... T, size_t... I>
static std::function<void()> bound(void (*kernel)(T...), const char* kinds, const Bits* bits, std::index_sequence<I...>) {
    return std::bind(kernel, taken<T>(kinds[I], bits[I])...);
}

template <class... T> static Launch launch_of(void (*kernel)(T...)) {
    return [kernel](const char* kinds, const Bits* bits) {
        if (strlen(kinds) != sizeof...(T)) emulation::fail((where + ": another number of arguments").c_str());
        return bound(kernel, kinds, bits, std::make_index_sequence<sizeof...(T)>());
    };
}

static const std::map<std::string, Launch> KERNELS = {
#define LAUNCH(name) {#name, launch_of(name)},
#include "names.inc"
};

extern "C" void emulated_launch(const char* name, const unsigned* grid, const unsigned* block, unsigned shared_bytes,
                                const char* kinds, const Bits* bits) {
    where = name;
    const auto kernel = KERNELS.find(where);
    if (kernel == KERNELS.end()) emulation::fail((where + ": there is no such kernel").c_str());
    emulation::launch(dim3{grid[0], grid[1], 1}, dim3{block[0], block[1], 1}, shared_bytes, false,
                      kernel->second(kinds, bits));
}
