// Functions of vectors that simd.h has no need of. NaN goes through all of them.
#pragma once

#include "simd.h"

namespace dlas::DLAS_NS {

// Every lane by a function of the C library, for what is too rare to be worth a polynomial.
template <float (*F)(float)>
DLAS_INLINE V lanewise(V v) {
  for (int i = 0; i < VL; ++i) v[i] = F(v[i]);
  return v;
}

DLAS_INLINE V exp_all(V x) {
  // vexp ends below 2^127.5: the last factor of two is applied afterwards, and beyond lies infinity.
  const V half = vexp(x > 87.0f ? x - 0.693147181f : x);
  const V y = x > 87.0f ? half * 2.0f : half;
  return x > 88.7228394f ? splat(INFINITY) : x < -87.33654f ? V{} : y;
}

// log for x > 0, after the Cephes library; zero gives -infinity and negative numbers NaN.
DLAS_INLINE V log_all(V x) {
  const VI bits = as_int(x);
  VI exponent = (bits >> 23) - 126;
  V m = as_float((bits & 0x007fffff) | 0x3f000000);  // [0.5, 1)
  const VI low = m < 0.707106781f;
  exponent += low;  // a true lane is -1
  m = low ? m + m - 1.0f : m - 1.0f;
  const V e = __builtin_convertvector(exponent, V), z = m * m;
  V p = splat(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  const V y = m + (p * m * z + e * -2.12194440e-4f - 0.5f * z) + e * 0.693359375f;
  const V nan = splat(NAN);
  V result = x > 0.0f ? y : (x == 0.0f ? splat(-INFINITY) : nan);
  result = x == splat(INFINITY) ? x : result;
  return x != x ? x : result;
}

DLAS_INLINE V absolute(V x) { return as_float(as_int(x) & 0x7fffffff); }

// erf to 3e-7: its series near 0, elsewhere 7.1.26 of Abramowitz and Stegun.
DLAS_INLINE V erf_all(V x) {
  const V a = absolute(x), s = x * x;
  V series = splat(-1.0f / 75600);
  series = series * s + 1.0f / 9360;
  series = series * s - 1.0f / 1320;
  series = series * s + 1.0f / 216;
  series = series * s - 1.0f / 42;
  series = series * s + 0.1f;
  series = series * s - 1.0f / 3;
  series = series * s + 1.0f;
  const V near = x * series * 1.12837917f;
  const V t = 1.0f / (1.0f + 0.3275911f * a);
  V p = splat(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const V far = 1.0f - p * t * vexp(-s);
  const V y = a < 0.75f ? near : (x < 0.0f ? -far : far);
  return x != x ? x : y;
}

DLAS_INLINE V softplus_all(V x) {
  const V a = absolute(x);
  const V e = vexp(-a);
  const V u = 1.0f + e;
  const V y = log_all(u) - ((u - 1.0f) - e) / u;  // with what 1 + e lost
  return (x > 0.0f ? x : (x != x ? x : V{})) + y;
}

DLAS_INLINE V elu_all(V x, float alpha) {
  // exp(x) - 1 loses digits near 0.
  const V series = x * (1.0f + x * (0.5f + x * (0.166666667f + x * (0.0416666667f + x * 0.00833333333f))));
  const V e = x > -0.1f ? series : vexp(x) - 1.0f;
  return x > 0.0f ? x : alpha * e;
}

DLAS_INLINE V sign_all(V x) { return x > 0.0f ? splat(1.0f) : (x < 0.0f ? splat(-1.0f) : x); }

}  // namespace dlas::DLAS_NS
