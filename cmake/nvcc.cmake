# Compiles one .cu file to a fat binary, or takes what another build made of the same text: machine code
# for six architectures takes minutes, and every preset and clone wants the same bytes.
#
#   cmake -DNVCC= -DFLAGS=a;b -DROOT=tree -DSOURCE=x.cu -DOUT=x.fatbin -DCACHE=folder -P nvcc.cmake
#
# As ccache does it: FIRST names a compilation (compiler, flags, file) and leads to the list of files
# that it read last time; WHOLE adds what those files hold now, and names the result. Paths are
# relative to the tree. CACHE may be shared by trees; what was not used for two weeks is removed.
file(RELATIVE_PATH source ${ROOT} ${SOURCE})
execute_process(COMMAND ${NVCC} --version OUTPUT_VARIABLE version)
string(REPLACE "${ROOT}" "" plain_flags "${FLAGS}")
string(SHA256 first "${version}${plain_flags}${source}")
set(list ${CACHE}/${first}.files)

function(whole_key files key_out)
  set(text ${first})
  foreach(file ${files})
    if(NOT EXISTS ${ROOT}/${file})
      set(${key_out} "" PARENT_SCOPE)
      return()
    endif()
    file(SHA256 ${ROOT}/${file} sum)
    string(APPEND text "\n${file} ${sum}")
  endforeach()
  string(SHA256 key "${text}")
  set(${key_out} ${key} PARENT_SCOPE)
endfunction()

function(write_dependencies files)
  set(text "${OUT}:")
  foreach(file ${files})
    string(APPEND text " ${ROOT}/${file}")
  endforeach()
  file(WRITE ${OUT}.d "${text}\n")
endfunction()

if(EXISTS ${list})
  file(STRINGS ${list} files)
  whole_key("${files}" key)
  if(key AND EXISTS ${CACHE}/${key}.fatbin)
    execute_process(COMMAND ${CMAKE_COMMAND} -E touch_nocreate ${list} ${CACHE}/${key}.fatbin
      ERROR_QUIET) # in use
    configure_file(${CACHE}/${key}.fatbin ${OUT} COPYONLY)
    file(TOUCH ${OUT}) # ninja asks for a file newer than what it was made from
    write_dependencies("${files}")
    return()
  endif()
endif()

execute_process(COMMAND ${NVCC} ${FLAGS} -MMD -MF ${OUT}.d -MT ${OUT} ${SOURCE} -o ${OUT}
  RESULT_VARIABLE failed)
if(failed)
  file(REMOVE ${OUT})
  message(FATAL_ERROR "nvcc failed on ${source}")
endif()

file(READ ${OUT}.d text)
string(REGEX REPLACE "^[^:]*:|\\\\\n" " " text "${text}")
string(REGEX MATCHALL "[^ \n]+" paths "${text}")
set(files "")
foreach(path ${paths})
  get_filename_component(path ${path} ABSOLUTE)
  file(RELATIVE_PATH file ${ROOT} ${path})
  if(NOT file MATCHES "^\\.\\./") # CUDA's own headers go with the compiler's version
    list(APPEND files ${file})
  endif()
endforeach()
list(REMOVE_DUPLICATES files)
write_dependencies("${files}")

# Others may be at it too: files appear whole, by renaming. A cache that cannot be written is no failure.
whole_key("${files}" key)
string(RANDOM LENGTH 12 unique)
list(JOIN files "\n" text)
execute_process(COMMAND ${CMAKE_COMMAND} -E make_directory ${CACHE} ERROR_QUIET)
execute_process(COMMAND ${CMAKE_COMMAND} -E copy ${OUT} ${CACHE}/${unique} RESULT_VARIABLE failed
  ERROR_QUIET)
if(NOT failed)
  file(RENAME ${CACHE}/${unique} ${CACHE}/${key}.fatbin)
  file(WRITE ${CACHE}/${unique} "${text}\n")
  file(RENAME ${CACHE}/${unique} ${list})
  execute_process(COMMAND find ${CACHE} -maxdepth 1 -type f -mtime +14 -delete ERROR_QUIET)
endif()
