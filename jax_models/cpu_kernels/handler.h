// How XLA calls the C++ of the models: by its foreign function interface, of
// which this is as much as is needed. XLA's own C++ header for it takes the
// compiler seconds per file; the C header below takes none. Its types are
// named as little as can be: some changed their names between versions.
//
// A handler is a function of a Call, exported by SEXTET_HANDLER. All arrays
// are float32.

#ifndef SEXTET_HANDLER_H_
#define SEXTET_HANDLER_H_

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <new>
#include <utility>

#include "xla/ffi/api/c_api.h"

namespace {

// Why a call cannot be answered, which XLA raises in Python.
struct Refusal {
  char reason[200];
};

// Throws a Refusal, its reason as by printf.
[[noreturn, gnu::cold, gnu::format(printf, 1, 2)]] inline void Refuse(
    const char* format, ...) {
  Refusal refusal;
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(refusal.reason, sizeof(refusal.reason), format, arguments);
  va_end(arguments);
  throw refusal;
}

// An argument or a result, in rows: the last dimension is dense.
struct Array {
  int64_t size() const {
    int64_t size = 1;
    for (int64_t i = 0; i < rank; ++i) size *= dimensions[i];
    return size;
  }
  float* data;
  const int64_t* dimensions;
  int64_t rank;
};

// Refuses an array that is not of these dimensions, naming it.
inline void Expect(const char* name, const Array& array,
                   std::initializer_list<int64_t> dimensions) {
  const auto rank = static_cast<int64_t>(dimensions.size());
  if (array.rank != rank ||
      !std::equal(dimensions.begin(), dimensions.end(), array.dimensions)) {
    Refuse("%s is not of the shape that goes with the others", name);
  }
}

// All arguments, or all results. Each is checked where it is taken.
class Arrays {
 public:
  Arrays(const char* kind, void* const* buffers, int64_t size)
      : kind_(kind), buffers_(buffers), size_(size) {}

  int64_t size() const { return size_; }

  Array operator[](int64_t i) const {
    if (i < 0 || i >= size_) {
      Refuse("there are only %d %ss", static_cast<int>(size_), kind_);
    }
    const auto* buffer = static_cast<const XLA_FFI_Buffer*>(buffers_[i]);
    if (buffer->dtype != XLA_FFI_DataType_F32) {
      Refuse("%s %d is not of float32", kind_, static_cast<int>(i));
    }
    return {static_cast<float*>(buffer->data), buffer->dims, buffer->rank};
  }

 private:
  const char* kind_;
  void* const* buffers_;
  int64_t size_;
};

// The numbers of an attribute.
template <typename T>
struct Span {
  const T* begin() const { return data; }
  const T* end() const { return data + size; }
  const T& operator[](int64_t i) const { return data[i]; }
  const T* data;
  int64_t size;
};

template <typename T>
constexpr XLA_FFI_DataType kTypeOf = XLA_FFI_DataType_INVALID;
template <>
constexpr XLA_FFI_DataType kTypeOf<bool> = XLA_FFI_DataType_PRED;
template <>
constexpr XLA_FFI_DataType kTypeOf<int32_t> = XLA_FFI_DataType_S32;
template <>
constexpr XLA_FFI_DataType kTypeOf<int64_t> = XLA_FFI_DataType_S64;
template <>
constexpr XLA_FFI_DataType kTypeOf<float> = XLA_FFI_DataType_F32;

// The threads that XLA computes with.
class Pool {
 public:
  explicit Pool(const XLA_FFI_CallFrame* frame)
      : api_(frame->api), context_(frame->ctx) {}

  int64_t num_threads() const {
    int64_t count = 1;
    XLA_FFI_ThreadPool_NumThreads_Args args = {};
    args.struct_size = XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE;
    args.ctx = context_;
    args.num_threads = &count;
    Succeeds(api_->XLA_FFI_ThreadPool_NumThreads(&args));
    return count < 1 ? 1 : count;
  }

  // Calls function() on another thread; on this one if there is none.
  template <typename Function>
  void Schedule(Function function) const {
    XLA_FFI_ThreadPool_Schedule_Args args = {};
    args.struct_size = XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE;
    args.ctx = context_;
    args.task = [](void* data) {
      auto* function = static_cast<Function*>(data);
      (*function)();
      delete function;
    };
    args.data = new Function(std::move(function));
    if (!Succeeds(api_->XLA_FFI_ThreadPool_Schedule(&args))) {
      args.task(args.data);
    }
  }

 private:
  bool Succeeds(XLA_FFI_Error* error) const {
    if (error == nullptr) return true;
    XLA_FFI_Error_Destroy_Args args = {};
    args.struct_size = XLA_FFI_Error_Destroy_Args_STRUCT_SIZE;
    args.error = error;
    api_->XLA_FFI_Error_Destroy(&args);
    return false;
  }

  const XLA_FFI_Api* api_;
  decltype(XLA_FFI_CallFrame::ctx) context_;
};

// What a handler is called with. What it is not called with, it is refused.
class Call {
 public:
  explicit Call(const XLA_FFI_CallFrame* frame)
      : pool(frame),
        arguments("argument", frame->args.args, frame->args.size),
        results("result", frame->rets.rets, frame->rets.size),
        attributes_(frame->attrs) {}

  // An attribute that is one number.
  template <typename T>
  T Number(const char* name) const {
    const void* found = Find(name, XLA_FFI_AttrType_SCALAR);
    const auto* scalar = static_cast<const XLA_FFI_Scalar*>(found);
    CheckType<T>(name, scalar->dtype);
    return *static_cast<const T*>(scalar->value);
  }

  // An attribute that is an array of numbers.
  template <typename T>
  Span<T> Numbers(const char* name) const {
    const void* found = Find(name, XLA_FFI_AttrType_ARRAY);
    const auto* array = static_cast<const XLA_FFI_Array*>(found);
    CheckType<T>(name, array->dtype);
    return {static_cast<const T*>(array->data),
            static_cast<int64_t>(array->size)};
  }

  const Pool pool;
  const Arrays arguments, results;

 private:
  const void* Find(const char* name, XLA_FFI_AttrType type) const {
    for (int64_t i = 0; i < attributes_.size; ++i) {
      const XLA_FFI_ByteSpan& span = *attributes_.names[i];
      if (attributes_.types[i] == type && span.len == std::strlen(name) &&
          std::memcmp(span.ptr, name, span.len) == 0) {
        return attributes_.attrs[i];
      }
    }
    const bool array = type == XLA_FFI_AttrType_ARRAY;
    Refuse("it has no %s as attribute %s", array ? "array" : "number", name);
  }

  template <typename T>
  static void CheckType(const char* name, XLA_FFI_DataType type) {
    static_assert(kTypeOf<T> != XLA_FFI_DataType_INVALID);
    if (type != kTypeOf<T>) Refuse("attribute %s is of another type", name);
  }

  const XLA_FFI_Attrs& attributes_;
};

// Which header it is compiled with: XLA asks every handler, before any call.
inline void Describe(XLA_FFI_Metadata* metadata) {
  metadata->api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr,
                           XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};
  metadata->traits = 0;
  metadata->state_type_id = XLA_FFI_UNKNOWN_TYPE_ID;
}

inline XLA_FFI_Error* Answer(XLA_FFI_CallFrame* frame, const char* name,
                             void (*handler)(const Call&)) {
  const auto* asked = frame->extension_start;
  if (asked != nullptr && asked->type == XLA_FFI_Extension_Metadata) {
    Describe(
        reinterpret_cast<const XLA_FFI_Metadata_Extension*>(asked)->metadata);
    return nullptr;
  }
  const auto fail = [&](const char* reason, XLA_FFI_Error_Code code) {
    char message[300];
    std::snprintf(message, sizeof(message), "%s: %s", name, reason);
    XLA_FFI_Error_Create_Args args = {};
    args.struct_size = XLA_FFI_Error_Create_Args_STRUCT_SIZE;
    args.message = message;
    args.errc = code;
    return frame->api->XLA_FFI_Error_Create(&args);
  };
  try {
    handler(Call(frame));
    return nullptr;
  } catch (const Refusal& refusal) {
    return fail(refusal.reason, XLA_FFI_Error_Code_INVALID_ARGUMENT);
  } catch (const std::bad_alloc&) {
    return fail("out of memory", XLA_FFI_Error_Code_RESOURCE_EXHAUSTED);
  }
}

}  // namespace

// Exports void handler(const Call&) under a name.
#define SEXTET_HANDLER(name, handler)                        \
  extern "C" XLA_FFI_Error* name(XLA_FFI_CallFrame* frame) { \
    return Answer(frame, #name, handler);                    \
  }

#endif  // SEXTET_HANDLER_H_
