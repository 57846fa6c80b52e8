#include "roofline.h"

namespace dlas {
std::map<std::string, double> roofline(const std::string&, int, double) { return {}; }
}  // namespace dlas
