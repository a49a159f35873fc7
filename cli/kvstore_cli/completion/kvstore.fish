function _kvstore_completion
    set -l before (commandline -opc)
    set -l word (commandline -ct)
    set -l plain (string unescape -- $word); or set plain (string trim --left --chars "'\"" -- $word)
    set -l answers (env COMP_WORDS=(string join \x1f -- $before[2..]) COMP_WORD=$plain \
        _KVSTORE_COMPLETE=fish_complete kvstore)
    for answer in $answers
        set -l parts (string split \t -- $answer)
        switch $parts[1]
            case plain folder
                printf '%s\t%s\n' $parts[2] $parts[3]
            case file
                for path in (__fish_complete_path $parts[2])
                    printf '%s%s\n' $parts[3] $path
                end
            case dir
                for path in (__fish_complete_directories $parts[2])
                    printf '%s%s\n' $parts[3] $path
                end
        end
    end
end
complete --no-files --keep-order --command kvstore --arguments '(_kvstore_completion)'
