// Up to six extents (or coordinates, or strides) of a tensor, in elements, outermost axis first (row-major order).
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

namespace reshard {

class Dims {
 public:
  static constexpr size_t kMaxAxes = 6;

  Dims() = default;
  Dims(std::initializer_list<uint64_t> values) {
    for (uint64_t value : values) push_back(value);
  }
  static Dims Filled(size_t axes, uint64_t value) {
    Dims dims;
    while (dims.size() < axes) dims.push_back(value);
    return dims;
  }

  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  uint64_t& operator[](size_t axis) { return values_[axis]; }
  uint64_t operator[](size_t axis) const { return values_[axis]; }
  uint64_t& back() { return values_[size_ - 1]; }
  const uint64_t* begin() const { return values_.data(); }
  const uint64_t* end() const { return values_.data() + size_; }
  // At most kMaxAxes values: readers check the number of axes before they build a Dims.
  void push_back(uint64_t value) { values_[size_++] = value; }

  friend bool operator==(const Dims& a, const Dims& b) {
    if (a.size_ != b.size_) return false;
    for (size_t i = 0; i < a.size_; ++i)
      if (a.values_[i] != b.values_[i]) return false;
    return true;
  }

 private:
  std::array<uint64_t, kMaxAxes> values_{};
  size_t size_ = 0;
};

// Product of the extents; 1 for a scalar. The caller knows that it fits.
uint64_t ElementCount(const Dims& shape);

// Elements from one index to the next, per axis, of a row-major array.
Dims RowMajorStrides(const Dims& shape);

std::string ToString(const Dims& shape);  // "[4096, 128]"

}  // namespace reshard
